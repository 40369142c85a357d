// Included once per instruction set, after its vectors: all kernels, compiled for it, and their table.
#pragma once

// clang-format off
#include "math.h"
#include "micro.h"
#include "panels.h"
#include "rows.h"
#include "gemm.h"
#include "epilogue.h"
#include "linear.h"
#include "attention_keys.h"
#include "attention_i8.h"
#include "attention_bf16.h"
#include "attention.h"
#include "patches.h"
#include "conv3d_copy.h"
#include "winograd_transforms.h"
#include "winograd.h"
#include "conv3d_few.h"
#include "conv3d.h"
#include "probe.h"
#include "table.h"
// clang-format on

#define KINEMA_TABLE(isa)                                                                                              \
    extern const Table isa##_table = {                                                                                 \
        #isa,                                                                                                          \
        isa::activate,                                                                                                 \
        isa::exponential,                                                                                              \
        isa::packed_bytes,                                                                                             \
        isa::pack_weight,                                                                                              \
        isa::linear_workspace,                                                                                         \
        isa::linear,                                                                                                   \
        isa::CODE_MAX,                                                                                                 \
        isa::BF16_GROUP == 2,                                                                                          \
        isa::norm_modulate_workspace,                                                                                  \
        isa::norm_modulate,                                                                                            \
        isa::qk_norm_rope_workspace,                                                                                   \
        isa::qk_norm_rope,                                                                                             \
        isa::scheduler_step_workspace,                                                                                 \
        isa::scheduler_step,                                                                                           \
        isa::attention_workspace,                                                                                      \
        isa::attention,                                                                                                \
        isa::patch_embed_workspace,                                                                                    \
        isa::patch_embed,                                                                                              \
        isa::unpatchify,                                                                                               \
        isa::winograd_packed_bytes,                                                                                    \
        isa::winograd_pack,                                                                                            \
        isa::conv3d_workspace,                                                                                         \
        isa::conv3d,                                                                                                   \
        isa::probe}
