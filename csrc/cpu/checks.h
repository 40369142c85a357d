// What a call is refused for before a kernel sees it: first what its numbers say, then, unless there is nothing to
// compute, where its pointers lead. Once per call; only what attention counts and lists costs more than its sizes.
#pragma once

#include "kinema.h"

namespace kinema {

// The result has no elements: the call succeeds and touches no memory.
constexpr int32_t NOTHING_TO_DO = -1;

// A status or NOTHING_TO_DO. Of pointers it is looked at only whether they are null.
int32_t check_sizes(const kinema_linear_args &a);
int32_t check_sizes(const kinema_norm_modulate_args &a);
int32_t check_sizes(const kinema_qk_norm_rope_args &a);
int32_t check_sizes(const kinema_scheduler_step_args &a);
int32_t check_sizes(const kinema_attention_args &a);
int32_t check_sizes(const kinema_patch_embed_args &a);
int32_t check_sizes(const kinema_unpatchify_args &a);
int32_t check_sizes(const kinema_conv3d_args &a);

// A status, of arguments whose sizes are right.
int32_t check_memory(const kinema_linear_args &a);
int32_t check_memory(const kinema_norm_modulate_args &a);
int32_t check_memory(const kinema_qk_norm_rope_args &a);
int32_t check_memory(const kinema_scheduler_step_args &a);
int32_t check_memory(const kinema_attention_args &a);
int32_t check_memory(const kinema_patch_embed_args &a);
int32_t check_memory(const kinema_unpatchify_args &a);
int32_t check_memory(const kinema_conv3d_args &a);

// Of a weight to be packed; NOTHING_TO_DO: it has no rows.
int32_t check_linear_weight(int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated);
int32_t check_winograd_weight(int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile);
// Of the memory that is packed, and the one that it is packed into.
int32_t check_packing(const void *rows, int32_t dtype, const void *packed);

// Of who may end a call; null: nobody.
int32_t check_control(const kinema_control *control);

inline bool is_thread_count(int32_t threads) { return threads >= 0 && threads <= KINEMA_MAX_THREADS; }

} // namespace kinema
