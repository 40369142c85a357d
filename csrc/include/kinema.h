/*
 * The C interface of kinema's native kernels.
 *
 * Everything is plain C: pointers, sizes, and strides counted in elements. Nothing throws, no state outlives a call but
 * the handle, and ops allocate nothing: the caller provides scratch memory, whose size a function returns. Every
 * function that can fail returns a status, 0 for success, which kinema_status_text() describes. Functions that return a
 * number return a negated status on failure: less than 0.
 *
 * Arguments are checked before anything is computed: sizes fit each other, strides are not negative, no two elements of
 * a result overlap, nothing is larger than memory can be, pointers are not null and are aligned (numbers to their size,
 * packed weights and scratch to 64 bytes), and lengths, counts and indices are in range. That a pointer refers to as
 * much memory as the sizes imply cannot be checked. An empty result (batch 0, tokens 0, ...) is success: then no
 * pointer is checked and no memory touched. Reduction axes (in features, input channels, a kernel) have at least one
 * element; only attention may have no keys, see there.
 *
 * Flags are 1 or 0. `threads` of every op: the most it may use, including the caller's, up to KINEMA_MAX_THREADS; 0
 * means 1.
 *
 * Activations are fp32, with the last axis dense unless it has a stride. Weights are packed once, for the instruction
 * set of the handle that will use them. Results do not depend on the number of threads.
 */
#ifndef KINEMA_H
#define KINEMA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define KINEMA_API __declspec(dllexport)
#else
#define KINEMA_API __attribute__((visibility("default")))
#endif

/* Raised whenever a struct or a function below changes. */
#define KINEMA_ABI_VERSION 9

enum kinema_status {
    KINEMA_OK = 0,
    KINEMA_UNKNOWN_ISA = 1,     /* not in this build */
    KINEMA_UNSUPPORTED_ISA = 2, /* the processor lacks these instructions */
    KINEMA_BAD_SIZE = 3,        /* a size is negative, or does not fit another */
    KINEMA_BAD_DTYPE = 4,       /* a number format that is not supported for this argument */
    KINEMA_NO_POINTER = 5,      /* a required pointer is null */
    KINEMA_NO_MEMORY = 6,
    KINEMA_BAD_OPTION = 7,
    KINEMA_INTERRUPTED = 8, /* the call was ended by its kinema_control */
    KINEMA_MISALIGNED = 9,  /* numbers not aligned to their size, or packed weights or scratch not to 64 bytes */
    KINEMA_BAD_INDEX = 10   /* a length, a count or an index is out of range */
};

#define KINEMA_MAX_THREADS 4096

enum kinema_dtype { KINEMA_F32 = 0, KINEMA_BF16 = 1, KINEMA_F16 = 2, KINEMA_E4M3 = 3, KINEMA_I8 = 4 };

enum kinema_activation {
    KINEMA_NONE = 0,
    KINEMA_GELU = 1,      /* the exact form, x/2 (1 + erf(x/sqrt 2)) */
    KINEMA_GELU_TANH = 2, /* the tanh form */
    KINEMA_QUICK_GELU = 3,
    KINEMA_SILU = 4
};

/* A table of kernels and the threads that run them. May be used by several threads at once. */
typedef struct kinema_cpu kinema_cpu;

KINEMA_API int32_t kinema_abi_version(void);
KINEMA_API const char *kinema_status_text(int32_t status);

/* The `index`th instruction set of this build, best first; NULL after the last. */
KINEMA_API const char *kinema_cpu_isa_name(int32_t index);
/* Whether this processor and its operating system support the instruction set. */
KINEMA_API int32_t kinema_cpu_has(const char *isa);
/* isa: NULL selects the best that the processor supports. */
KINEMA_API int32_t kinema_cpu_create(const char *isa, kinema_cpu **made);
KINEMA_API void kinema_cpu_destroy(kinema_cpu *cpu); /* NULL: no effect */
/* NULL for NULL. */
KINEMA_API const char *kinema_cpu_isa(const kinema_cpu *cpu);

/* Runs body(data) on up to `threads` threads at once, including the caller's, and returns when all are done. This is
 * the signature of GOMP_parallel(), which the OpenMP runtimes of GCC, LLVM and Intel provide; flags: 0. */
typedef void (*kinema_parallel)(void (*body)(void *data), void *data, unsigned threads, unsigned flags);
/* Uses the host's threads, so that two pools do not compete for the cores; NULL: the handle's own, the default. Not
 * while calls run. A forked child reverts to its own threads. */
KINEMA_API int32_t kinema_cpu_use_threads(kinema_cpu *cpu, kinema_parallel parallel);

/* Interrupts a call before it is done; a null control: nothing does. All threads of a call check the flags, and the
 * caller's also calls `poll`, while it works and while it waits for the others, at least every few milliseconds. Soon
 * after a flag or the result of `poll` is not 0 the call returns KINEMA_INTERRUPTED, without calling `poll` again. What
 * it was writing (results, caches, packed weights) is then incomplete. kinema_scheduler_step, which is short, checks
 * once before it starts and never stops halfway. */
typedef int32_t (*kinema_poll)(void *data);
typedef struct kinema_control {
    const int32_t *const *flags; /* [flag_count]; any thread may set them during the call, with an atomic store */
    int64_t flag_count;
    kinema_poll poll; /* may call these functions, and must return; NULL: only flags */
    void *data;
    int32_t interval_ms; /* between calls of `poll`, or a few milliseconds more; 0: at every check */
    int32_t skip_tasks;  /* not 0: threads are handed their tasks and run none, to measure what calls cost besides */
} kinema_control;

/* y[i] = activation(x[i]), in fp32. */
KINEMA_API int32_t kinema_activate(const kinema_cpu *cpu, int32_t activation, int64_t count, const float *x, float *y);
/* y[i] = e^x[i], in fp32; never less than about the smallest normal number. */
KINEMA_API int32_t kinema_exp(const kinema_cpu *cpu, int64_t count, const float *x, float *y);

/* ---- norms ---- */

enum kinema_norm_kind { KINEMA_NO_NORM = 0, KINEMA_RMS_NORM = 1, KINEMA_LAYER_NORM = 2 };

/* y = (1 + scale) * (norm(x) * weight + bias) + shift over a row of channels; all pointers may be null */
typedef struct kinema_norm {
    const float *weight;
    const float *bias;
    const float *scale; /* token s of sample b reads row s / scale_tokens */
    int64_t scale_stride_b, scale_stride_g, scale_tokens;
    const float *shift;
    int64_t shift_stride_b, shift_stride_g, shift_tokens;
    float eps;
    int32_t kind;
} kinema_norm;

/* ---- linear: y = residual + gate * act(norm(x) W^T + b) ---- */

/* Bytes of a packed weight of out_features rows (twice as many if gated) of in_features. */
KINEMA_API int64_t kinema_linear_packed_bytes(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated);
/* rows: dense [out_features, in_features], the gate's rows first if gated. packed: 64-byte aligned. */
KINEMA_API int32_t kinema_linear_pack(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated, const void *rows,
    void *packed, const kinema_control *control);

typedef struct kinema_linear_args {
    /* the input: batch x tokens rows of x_features, then x2's features (in_features in total) */
    int64_t batch, tokens;
    const void *x;
    int64_t x_stride_b, x_stride_s;
    int64_t x_features;
    const float *x2; /* fp32; NULL: x holds all features */
    int64_t x2_stride_b, x2_stride_s;
    const float *x_scale;    /* [batch * tokens], for an 8-bit x; NULL: 1 */
    const kinema_norm *norm; /* applied to an fp32 x without x2; NULL: none */
    /* the packed weight; scale and bias per row, the gate's first if gated; NULL: 1 and 0 */
    const void *weight;
    const float *weight_scale;
    const float *bias;
    int64_t in_features, out_features;
    /* modulation: token s of sample b reads row s / gate_tokens; NULL: 1 */
    const float *gate;
    int64_t gate_stride_b, gate_stride_g, gate_tokens;
    const float *residual; /* may be out itself; NULL: 0 */
    int64_t residual_stride_b, residual_stride_s;
    float *out;
    int64_t out_stride_b, out_stride_s;
    void *workspace; /* kinema_linear_workspace() bytes, 64-byte aligned */
    int32_t x_dtype; /* F32, E4M3 or I8 */
    int32_t weight_dtype;
    int32_t gated;
    int32_t quantize; /* 1: x is fp32 and is quantized first, for an int8 weight, see kinema_linear_code_top(); or
                         cast to bf16, for a weight in bf16 or e4m3, see kinema_linear_multiplies_bf16() */
    int32_t activation;
    int32_t threads;
} kinema_linear_args;

KINEMA_API int64_t kinema_linear_workspace(const kinema_cpu *cpu, const kinema_linear_args *args);
KINEMA_API int32_t kinema_linear(const kinema_cpu *cpu, const kinema_linear_args *args, const kinema_control *control);
/* How an fp32 x is quantized for an int8 weight: x = scale * (code - zero_point) with codes of 0 to this maximum and,
 * per token, scale = max(max(x, 0) - min(x, 0), 1e-12) / maximum, zero_point = round(-min(x, 0) / scale), code =
 * round(x / scale) + zero_point. 255, or 127 where the instruction set has no product of full 8-bit codes. */
KINEMA_API int32_t kinema_linear_code_top(const kinema_cpu *cpu);
/* 1: with `quantize`, a weight in bf16 or e4m3 uses bf16 dot products, up to twice as fast. 0: x is rounded to bf16 but
 * multiplied in fp32, which gains nothing. */
KINEMA_API int32_t kinema_linear_multiplies_bf16(const kinema_cpu *cpu);

/* ---- rows: norms, rotation, quantization ---- */

/* y = norm(x) over rows of `channels`. With a zeroed norm (no kind, no pointers) and an 8-bit out, x itself is
 * quantized.
 */
typedef struct kinema_norm_modulate_args {
    int64_t batch, tokens, channels;
    const float *x;
    int64_t x_stride_b, x_stride_s;
    kinema_norm norm;
    void *out; /* fp32 with the strides below; or out_dtype E4M3 or I8, dense, each row divided by its out_scale */
    int64_t out_stride_b, out_stride_s;
    float *out_scale; /* [batch * tokens] */
    void *workspace;  /* kinema_norm_modulate_workspace() bytes, 64-byte aligned; NULL where that is 0 */
    int32_t out_dtype;
    int32_t threads;
} kinema_norm_modulate_args;

KINEMA_API int64_t kinema_norm_modulate_workspace(const kinema_cpu *cpu, const kinema_norm_modulate_args *args);
KINEMA_API int32_t
kinema_norm_modulate(const kinema_cpu *cpu, const kinema_norm_modulate_args *args, const kinema_control *control);

/* x [batch, tokens, heads * head_dim] -> out [batch, heads, tokens, head_dim], each head dense over tokens and channels
 */
typedef struct kinema_qk_norm_rope_args {
    int64_t batch, tokens, heads, head_dim;
    const float *x;
    int64_t x_stride_b, x_stride_s;
    const float *weight; /* [heads * head_dim] if across_heads, else [head_dim]; may be null, as bias may */
    const float *bias;
    const float *cosines; /* [rope_tokens, head_dim / 2], for tokens from rope_start on; null: no rotation */
    const float *sines;
    int64_t rope_stride_b, rope_start, rope_tokens;
    float *out;
    int64_t out_stride_b, out_stride_n;
    float eps;
    int32_t norm;
    int32_t across_heads;
    int32_t interleaved; /* pairs (2j, 2j + 1), else (j, j + head_dim / 2) */
    int32_t threads;
} kinema_qk_norm_rope_args;

KINEMA_API int32_t
kinema_qk_norm_rope(const kinema_cpu *cpu, const kinema_qk_norm_rope_args *args, const kinema_control *control);

/* ---- scheduler_step: out[m] = sum over k of coefficients[b, m, k] * terms[k] ---- */

typedef struct kinema_scheduler_step_args {
    int64_t batch, elements; /* of a sample */
    int64_t term_count, out_count;
    const float *const *terms;
    const int64_t *term_strides; /* between samples */
    const float *coefficients;   /* [batch, out_count, term_count]; a term whose coefficient is 0 is not read for it */
    float *const *outs;          /* each may be a term */
    const int64_t *out_strides;
    void *workspace; /* kinema_scheduler_step_workspace() bytes, 64-byte aligned */
    int32_t threads;
} kinema_scheduler_step_args;

KINEMA_API int64_t kinema_scheduler_step_workspace(const kinema_cpu *cpu, const kinema_scheduler_step_args *args);
KINEMA_API int32_t
kinema_scheduler_step(const kinema_cpu *cpu, const kinema_scheduler_step_args *args, const kinema_control *control);

/* ---- attention ---- */

/* Up to two query segments attend to up to three key segments as if they were concatenated. A segment may be empty (its
 * pointers are then ignored), and so may all key segments: a query without keys gives 0, or its residual. Two query
 * segments exclude a residual, causal blocks and lists. */
typedef struct kinema_attention_args {
    int64_t batch, heads, head_dim;
    int64_t query_segments, key_segments;
    const float *q[2]; /* channels dense */
    int64_t q_stride_b[2], q_stride_n[2], q_stride_s[2], q_tokens[2];
    float *out[2]; /* [batch, tokens, heads * head_dim], channels dense */
    int64_t out_stride_b[2], out_stride_s[2];
    const float *residual; /* for the first segment; may be its out; null: 0 */
    int64_t residual_stride_b, residual_stride_s;
    const float *k[3];
    int64_t k_stride_b[3], k_stride_n[3], k_stride_r[3];
    const float *v[3];
    int64_t v_stride_b[3], v_stride_n[3], v_stride_r[3];
    int64_t slots[3];
    const int64_t *lengths[3]; /* [batch], how many slots are valid, 0 to all; null: all */
    const float *cosines[3];   /* rotates slots from rope_start on, on read; null: no rotation */
    const float *sines[3];
    int64_t rope_stride_b[3], rope_start[3], rope_tokens[3];
    const float *bias; /* added to the logits, indexed by concatenated queries and slots; null: 0 */
    int64_t bias_stride_b, bias_stride_n, bias_stride_s, bias_stride_r;
    int64_t causal_block, causal_offset;  /* in the last key segment; a block of 0: no mask */
    const int32_t *indices;               /* key tiles, without repeats in a list, [query tiles, listed] */
    const int32_t *counts;                /* [query tiles], used entries of each list; null: attend to all keys */
    int64_t list_stride_b, list_stride_n; /* of counts; strides of indices are `listed` times as large */
    int64_t listed, query_tile, key_tile;
    void *workspace; /* kinema_attention_workspace() bytes, 64-byte aligned */
    float scale;
    int32_t interleaved[3];
    int32_t quantize; /* 1: logits from int8 queries and keys, of 181 levels; 0: from fp32 */
    int32_t threads;
} kinema_attention_args;

KINEMA_API int64_t kinema_attention_workspace(const kinema_cpu *cpu, const kinema_attention_args *args);
KINEMA_API int32_t
kinema_attention(const kinema_cpu *cpu, const kinema_attention_args *args, const kinema_control *control);

/* ---- patches and convolutions ---- */

/* token(t, h, w) = W patch(t, h, w) + b + position; the weight is packed by kinema_linear_pack from
 * [features, channels * pt * ph * pw] */
typedef struct kinema_patch_embed_args {
    int64_t batch, channels, frames, height, width;
    const float *x;
    int64_t x_stride_b, x_stride_c, x_stride_t, x_stride_h, x_stride_w;
    int64_t patch_t, patch_h, patch_w, features;
    const void *weight;
    const float *bias;
    const float *position; /* [tokens, features] */
    int64_t position_stride_b, position_stride_s;
    float *out; /* [batch, tokens, features] */
    int64_t out_stride_b, out_stride_s;
    void *workspace; /* kinema_patch_embed_workspace() bytes, 64-byte aligned */
    int32_t threads;
} kinema_patch_embed_args;

KINEMA_API int64_t kinema_patch_embed_workspace(const kinema_cpu *cpu, const kinema_patch_embed_args *args);
KINEMA_API int32_t
kinema_patch_embed(const kinema_cpu *cpu, const kinema_patch_embed_args *args, const kinema_control *control);

/* Tokens [batch, t * h * w, patch of channels] to a dense video [batch, channels, t * pt, h * ph, w * pw]. */
typedef struct kinema_unpatchify_args {
    int64_t batch, channels, grid_t, grid_h, grid_w, patch_t, patch_h, patch_w;
    const float *x;
    int64_t x_stride_b, x_stride_s;
    float *out;
    int32_t channel_first; /* a token is (channels, pt, ph, pw), else (pt, ph, pw, channels) */
    int32_t threads;
} kinema_unpatchify_args;

KINEMA_API int32_t
kinema_unpatchify(const kinema_cpu *cpu, const kinema_unpatchify_args *args, const kinema_control *control);

/* conv(past frames ++ upsample(act(norm(x)))) + bias + residual, channels last; the weight is packed by
   kinema_linear_pack from [out_channels, kernel_t * kernel_h * kernel_w * in_channels], or, if kernel_h = kernel_w = 3
   and all strides are 1, by kinema_winograd_pack with the tile `winograd` */
typedef struct kinema_conv3d_args {
    int64_t batch, in_channels, out_channels, frames, height, width;
    const float *x;
    int64_t x_stride_b, x_stride_c, x_stride_t, x_stride_h, x_stride_w;
    const float *norm; /* [in_channels]: x / max(|x|, 1e-12) * sqrt(in_channels) * norm; null: none */
    float *cache;      /* the frames before x, read and then updated; null: zeros */
    int64_t cache_stride_b, cache_stride_c, cache_stride_t, cache_stride_h, cache_stride_w;
    int64_t kernel_t, kernel_h, kernel_w, stride_t, stride_h, stride_w;
    int64_t pad_top, pad_bottom, pad_left, pad_right;
    int64_t upsample;
    const void *weight;
    const float *bias;
    const float *residual; /* dense [batch, frames', height', width', out_channels], as out; may be out itself */
    float *out;
    void *workspace;    /* kinema_conv3d_workspace() bytes, 64-byte aligned */
    int32_t activation; /* of x, after the norm */
    int32_t winograd;   /* the tile passed to kinema_winograd_pack; 0: packed by kinema_linear_pack */
    int32_t threads;
} kinema_conv3d_args;

/* Bytes of a kernel [out_channels, kernel_t, 3, 3, in_channels] transformed for Winograd's F(tile x tile, 3x3), tile 2
 * or 4: 2.25 or 4 times fewer multiplications, 16/9 or 4 times the size (more if the channels are not a multiple of the
 * vector length), and a larger rounding error. */
KINEMA_API int64_t kinema_winograd_packed_bytes(
    const kinema_cpu *cpu, int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile);
/* packed: 64-byte aligned */
KINEMA_API int32_t kinema_winograd_pack(
    const kinema_cpu *cpu, int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile,
    const float *weight, void *packed, const kinema_control *control);

KINEMA_API int64_t kinema_conv3d_workspace(const kinema_cpu *cpu, const kinema_conv3d_args *args);
KINEMA_API int32_t kinema_conv3d(const kinema_cpu *cpu, const kinema_conv3d_args *args, const kinema_control *control);

/* ---- programs: the same calls once more, by one call ---- */

enum kinema_op {
    KINEMA_LINEAR = 0,
    KINEMA_NORM_MODULATE = 1,
    KINEMA_QK_NORM_ROPE = 2,
    KINEMA_ATTENTION = 3,
    KINEMA_PATCH_EMBED = 4,
    KINEMA_UNPATCHIFY = 5,
    KINEMA_CONV3D = 6,
    KINEMA_SCHEDULER_STEP = 7
};

/* Calls of one handle, which must outlive it. One thread at a time may append to it or run it. */
typedef struct kinema_program kinema_program;

KINEMA_API int32_t kinema_program_create(const kinema_cpu *cpu, kinema_program **made);
KINEMA_API void kinema_program_destroy(kinema_program *program); /* NULL: nothing happens */
/* op: one of kinema_op; args: its struct, which is read at every run, and so is all that it points to: both stay where
 * they are as long as the program does. */
KINEMA_API int32_t kinema_program_append(kinema_program *program, int32_t op, const void *args);
/* Every call in the order of appending, as if each was made alone, until one is refused or ended. `control` is asked
 * between them too. */
KINEMA_API int32_t kinema_program_run(const kinema_program *program, const kinema_control *control);

/* ---- peak performance ---- */

/* `steps` rounds of independent multiply-adds on each thread (KINEMA_F32: fp32, KINEMA_I8: the exact int8 product).
 * operations: how many were done, two per multiply-add. The caller measures the time. */
KINEMA_API int32_t
kinema_probe_arithmetic(const kinema_cpu *cpu, int32_t dtype, int64_t steps, int32_t threads, int64_t *operations);
/* Copies `bytes`, each thread its share. */
KINEMA_API int32_t kinema_probe_copy(const kinema_cpu *cpu, const void *from, void *to, int64_t bytes, int32_t threads);

#ifdef __cplusplus
}
#endif

#endif
