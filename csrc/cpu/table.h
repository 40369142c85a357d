// The functions that are compiled once per instruction set.
#pragma once

#include "call.h"
#include "kinema.h"
#include "pool.h"

namespace kinema {

struct Table {
    const char *isa;
    void (*activate)(int32_t activation, int64_t count, const float *x, float *y);
    void (*exp)(int64_t count, const float *x, float *y);
    int64_t (*linear_packed_bytes)(int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated);
    void (*linear_pack)(
        int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated, const void *rows, void *packed,
        Call &call);
    int64_t (*linear_workspace)(const kinema_linear_args &args);
    void (*linear)(const kinema_linear_args &args, Call &call);
    int32_t code_max;
    int32_t multiplies_bf16;
    int64_t (*norm_modulate_workspace)(const kinema_norm_modulate_args &args);
    void (*norm_modulate)(const kinema_norm_modulate_args &args, Call &call);
    int64_t (*qk_norm_rope_workspace)(const kinema_qk_norm_rope_args &args);
    void (*qk_norm_rope)(const kinema_qk_norm_rope_args &args, Call &call);
    int64_t (*scheduler_step_workspace)(const kinema_scheduler_step_args &args);
    void (*scheduler_step)(const kinema_scheduler_step_args &args, Call &call);
    int64_t (*attention_workspace)(const kinema_attention_args &args);
    void (*attention)(const kinema_attention_args &args, Call &call);
    int64_t (*patch_embed_workspace)(const kinema_patch_embed_args &args);
    void (*patch_embed)(const kinema_patch_embed_args &args, Call &call);
    void (*unpatchify)(const kinema_unpatchify_args &args, Call &call);
    int64_t (*winograd_packed_bytes)(int64_t in_channels, int64_t out_channels, int64_t kernel_t, int64_t tile);
    void (*winograd_pack)(
        int64_t in_channels, int64_t out_channels, int64_t kernel_t, int64_t tile, const float *weight, void *packed,
        Call &call);
    int64_t (*conv3d_workspace)(const kinema_conv3d_args &args);
    void (*conv3d)(const kinema_conv3d_args &args, Call &call);
    int64_t (*probe)(int32_t dtype, int64_t steps);
};

// Each in its own file, compiled with the flags of its instruction set.
extern const Table portable_table;
extern const Table avx2_table;
extern const Table avx512_table;
extern const Table avx512vnni_table;
extern const Table avx512bf16_table;

} // namespace kinema

struct kinema_cpu {
    const kinema::Table *table;
    mutable kinema::Pool pool;
};
