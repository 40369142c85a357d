// The functions that exist once per instruction set.
#pragma once

#include "kinema.h"
#include "pool.h"

namespace kinema {

struct Table {
    const char *isa;
    void (*activate)(int32_t activation, int64_t count, const float *x, float *y);
    void (*exp)(int64_t count, const float *x, float *y);
    int64_t (*linear_packed_bytes)(int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated);
    void (*linear_pack)(
        int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated, const void *rows, void *packed);
    int64_t (*linear_workspace)(const kinema_linear_args &args);
    void (*linear)(const kinema_linear_args &args, Pool &pool);
};

// Each in a file of its own, compiled for its instructions.
extern const Table portable_table;
extern const Table avx2_table;
extern const Table avx512_table;

} // namespace kinema

struct kinema_cpu {
    const kinema::Table *table;
    mutable kinema::Pool pool;
};
