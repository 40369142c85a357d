/*
 * The C interface of kinema's native kernels.
 *
 * Everything is plain C: pointers, sizes, and strides counted in elements. Nothing is thrown, nothing is kept between
 * calls but the handle, and nothing is allocated: scratch memory is the caller's, and a function says how much of it a
 * call wants. Every function that can fail gives a status, 0 for success, and kinema_status_text() its sentence.
 *
 * Activations are fp32, with the last axis dense unless a stride is given for it. Weights are packed once, by the
 * instruction set of the handle that will use them. Results do not depend on the number of threads.
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
#define KINEMA_ABI_VERSION 1

enum kinema_status {
    KINEMA_OK = 0,
    KINEMA_UNKNOWN_ISA = 1,     /* no table of that name in this build */
    KINEMA_UNSUPPORTED_ISA = 2, /* the processor lacks these instructions */
    KINEMA_BAD_SIZE = 3,        /* a size is negative, or does not fit another */
    KINEMA_BAD_DTYPE = 4,       /* a number format that this function does not take there */
    KINEMA_NO_POINTER = 5,      /* a pointer that is needed is null */
    KINEMA_NO_MEMORY = 6,
    KINEMA_BAD_OPTION = 7
};

enum kinema_dtype { KINEMA_F32 = 0, KINEMA_BF16 = 1, KINEMA_F16 = 2, KINEMA_E4M3 = 3, KINEMA_I8 = 4 };

enum kinema_activation {
    KINEMA_NONE = 0,
    KINEMA_GELU = 1,      /* the exact form, x/2 (1 + erf(x/sqrt 2)) */
    KINEMA_GELU_TANH = 2, /* the tanh form */
    KINEMA_QUICK_GELU = 3,
    KINEMA_SILU = 4
};

/* A table of kernels and the threads that run them. Calls from several threads at once are fine. */
typedef struct kinema_cpu kinema_cpu;

KINEMA_API int32_t kinema_abi_version(void);
KINEMA_API const char *kinema_status_text(int32_t status);

/* The instruction sets of this build, best first, the `index`th; NULL behind the last. */
KINEMA_API const char *kinema_cpu_isa_name(int32_t index);
/* Whether this processor (and its operating system) has the instruction set. */
KINEMA_API int32_t kinema_cpu_has(const char *isa);
/* isa: NULL takes the best that the processor has. */
KINEMA_API int32_t kinema_cpu_create(const char *isa, kinema_cpu **made);
KINEMA_API void kinema_cpu_destroy(kinema_cpu *cpu);
KINEMA_API const char *kinema_cpu_isa(const kinema_cpu *cpu);

/* y[i] = activation(x[i]), in fp32. */
KINEMA_API int32_t kinema_activate(const kinema_cpu *cpu, int32_t activation, int64_t count, const float *x, float *y);
/* y[i] = e^x[i], in fp32; results below the smallest normal number are cut to about it. */
KINEMA_API int32_t kinema_exp(const kinema_cpu *cpu, int64_t count, const float *x, float *y);

/* ---- linear: y = residual + gate * act(x W^T + b) ---- */

/* Bytes of a packed weight of out_features rows (twice as many if gated) of in_features. */
KINEMA_API int64_t kinema_linear_packed_bytes(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated);
/* rows: dense [out_features, in_features], of a gated weight the gate's rows first. packed: 64-byte aligned. */
KINEMA_API int32_t kinema_linear_pack(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated, const void *rows,
    void *packed);

typedef struct kinema_linear_args {
    /* the input: batch x tokens rows of x_features, behind which come x2's features (in_features in all) */
    int64_t batch, tokens;
    const void *x;
    int64_t x_stride_b, x_stride_s;
    int64_t x_features;
    const float *x2; /* fp32; NULL: x holds all the features */
    int64_t x2_stride_b, x2_stride_s;
    const float *x_scale; /* [batch * tokens], of an x in 8 bits; NULL: 1 */
    /* the weight as it was packed; scale and bias per row, of a gated weight the gate's first; NULL: 1 and 0 */
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
    int32_t quantize; /* 1: x is fp32 and becomes int8 with one scale per token first */
    int32_t activation;
    int32_t threads;
} kinema_linear_args;

KINEMA_API int64_t kinema_linear_workspace(const kinema_cpu *cpu, const kinema_linear_args *args);
KINEMA_API int32_t kinema_linear(const kinema_cpu *cpu, const kinema_linear_args *args);

#ifdef __cplusplus
}
#endif

#endif
