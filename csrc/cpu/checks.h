// Checks before a kernel runs: first the scalars of a call, then, unless there is nothing to compute, its pointers.
// Once per call; only the counts and lists of attention take longer to check than the sizes.
#pragma once

#include "kinema.h"

namespace kinema {

// The result is empty: the call succeeds and touches no memory.
constexpr int32_t NOTHING_TO_DO = -1;

// A status or NOTHING_TO_DO. Pointers are only compared with null.
int32_t check_sizes(const kinema_linear_args &a);
int32_t check_sizes(const kinema_norm_modulate_args &a);
int32_t check_sizes(const kinema_qk_norm_rope_args &a);
int32_t check_sizes(const kinema_scheduler_step_args &a);
int32_t check_sizes(const kinema_attention_args &a);
int32_t check_sizes(const kinema_patch_embed_args &a);
int32_t check_sizes(const kinema_unpatchify_args &a);
int32_t check_sizes(const kinema_conv3d_args &a);

// A status; the sizes have passed check_sizes().
int32_t check_memory(const kinema_linear_args &a);
int32_t check_memory(const kinema_norm_modulate_args &a);
int32_t check_memory(const kinema_qk_norm_rope_args &a);
int32_t check_memory(const kinema_scheduler_step_args &a);
int32_t check_memory(const kinema_attention_args &a);
int32_t check_memory(const kinema_patch_embed_args &a);
int32_t check_memory(const kinema_unpatchify_args &a);
int32_t check_memory(const kinema_conv3d_args &a);

// A weight to be packed; NOTHING_TO_DO: it has no rows.
int32_t check_linear_weight(int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated);
int32_t check_winograd_weight(int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile);
// Source and destination of packing.
int32_t check_packing(const void *rows, int32_t dtype, const void *packed);

// What may interrupt a call; null: nothing.
int32_t check_control(const kinema_control *control);

inline bool is_thread_count(int32_t threads) { return threads >= 0 && threads <= KINEMA_MAX_THREADS; }

} // namespace kinema
