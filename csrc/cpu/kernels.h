// Included once per instruction set, behind its vectors: all kernels, compiled for it, and their table.
#pragma once

#include "math.h"
#include "micro.h"
#include "panels.h"

#include "gemm.h"
#include "linear.h"
#include "table.h"

#define KINEMA_TABLE(isa)                                                                                              \
    extern const Table isa##_table = {#isa,                                                                            \
                                      isa::activate,                                                                   \
                                      isa::exponential,                                                                \
                                      isa::packed_bytes,                                                               \
                                      isa::pack_weight,                                                                \
                                      isa::linear_workspace,                                                           \
                                      isa::linear}
