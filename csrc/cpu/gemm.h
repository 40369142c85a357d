// Blocked matrix multiplication: the left matrix is packed on the fly, and each tile ends in an epilogue of the
// caller's.
//
// Goto and van de Geijn 2008 (Anatomy of high-performance matrix multiplication): a panel of the weight, KC deep, stays
// in L1 while the tiles of a packed block of the left matrix stream from L2.
#pragma once

#include <cstdint>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t F32_DEPTH = W == 16 ? 192 : 256;  // a panel takes 24 KB on AVX-512, 16 on AVX2
constexpr int64_t I8_DEPTH = 768;                   // the same in bytes
constexpr int64_t BLOCK_ROWS = W == 16 ? 216 : 144; // with F32_DEPTH 166 KB of the left matrix, or 147
constexpr int64_t I8_BLOCK_ROWS = 96;
constexpr int64_t BLOCK_COLUMNS = 768;
constexpr int64_t MAX_COLUMN_SPLITS = 4; // of the last row blocks, so that no thread waits long for another
constexpr int64_t MIN_SPLIT_PANELS = 24; // at least: each split packs the left matrix again

// The scale of a row; the zero point of a quantized row, x = scale · (code − zero_point); and the moments of a row that
// is normalised while it is packed.
struct RowScale {
    float scale;
    int32_t zero_point;
    Moments moments = {};
};

// One product. rows: of the left matrix; columns: of the result (a gated weight has twice as many).
struct GemmProblem {
    int64_t rows, columns, depth;
    int64_t first, skip; // first row; leading depth where the left matrix is zero
    const void *weight;
    int32_t dtype;
    bool gated;
    bool use_i8;   // rows and weight are int8
    bool use_bf16; // rows are bf16, the weight bf16 or e4m3
    int threads;
    char *workspace;
    // Packs rows m to m + count, features k to k + depth of the left matrix into `to`: fp32 as [depth/KB][MR][KB],
    // codes as [depth/4][I8_ROWS][4], bf16 as [depth/2][MR][2], zero-padded to whole groups except for fp32. scales:
    // what prepare() left for row m.
    void (*pack)(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *scales, void *to);
    // Called once per block of rows, before any pack(); may be null.
    void (*prepare)(const void *source, int64_t m, int64_t count, RowScale *scales);
    // Prefetches what finish() will read and write for the same tile: its rows are far apart, and without this the
    // stores wait for memory. May be null.
    void (*prefetch)(const void *source, int64_t m, int count, int64_t n);
    // The epilogue. tile, gate: [count, NR] sums in fp32 or int32 (gate: null unless gated), of rows m.. and columns
    // n.. of the result.
    void (*finish)(
        const void *source, const void *tile, const void *gate, int64_t m, int count, int64_t n, int columns,
        const RowScale *scales);
    const void *source;
};

struct F32Kernel {
    using A = float;
    using C = float;
    static constexpr int ROWS = MR;
    static constexpr int64_t BLOCK = BLOCK_ROWS;
    static constexpr int64_t DEPTH = F32_DEPTH;
    static constexpr int64_t A_BYTES = MR * 4; // of a tile, per step of the depth
    static constexpr int64_t GROUP = KB;
    static const void *panel(const GemmProblem &p, int64_t panel, int64_t k, int64_t count, float *buffer) {
        return panel_f32(p.weight, p.dtype, panel, stored_depth(p.depth, p.dtype), k, count, buffer);
    }
    static void
    multiply(int rows, int columns, const float *a, const void *b, int64_t depth, float *c, bool accumulate) {
        multiply_f32(rows, columns, a, Packed{}, static_cast<const float *>(b), depth, c, NR, accumulate);
    }
};

struct I8Kernel {
    using A = uint8_t;
    using C = int32_t;
    static constexpr int ROWS = I8_ROWS;
    static constexpr int64_t BLOCK = I8_BLOCK_ROWS;
    static constexpr int64_t DEPTH = I8_DEPTH;
    static constexpr int64_t A_BYTES = I8_ROWS;
    static constexpr int64_t GROUP = 4;
    static const void *panel(const GemmProblem &p, int64_t panel, int64_t k, int64_t, float *) {
        return panel_at<int8_t>(p.weight, panel, stored_depth(p.depth, KINEMA_I8), k);
    }
    static void multiply(int rows, int, const uint8_t *a, const void *b, int64_t depth, int32_t *c, bool accumulate) {
        multiply_i8(rows, a, static_cast<const int8_t *>(b), depth, c, accumulate);
    }
};

} // namespace KINEMA_ISA
} // namespace kinema

#if defined(__AVX512BF16__)
#include "bf16.h"
#endif

namespace kinema {
namespace KINEMA_ISA {

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The tiling of a product, and the scratch of a thread.
template <class Kernel> struct GemmTiling {
    int64_t tiles, panels, halves;                     // of the whole product
    int64_t row_blocks, unsplit_blocks, column_splits; // the first `unsplit_blocks` are a task each
    int64_t tasks;
    int64_t block_tiles, chunk_panels; // of one task
    bool keeps_slices;                 // packed slices of the whole depth stay for the next chunk of columns
    int64_t tile_size, slice_bytes, a_bytes, b_bytes, c_bytes, scale_bytes, bytes;

    explicit GemmTiling(const GemmProblem &p) {
        tiles = ceil_div(p.rows, Kernel::ROWS);
        panels = ceil_div(p.columns, NR);
        halves = p.gated ? 2 : 1;
        row_blocks = ceil_div(tiles, Kernel::BLOCK / Kernel::ROWS);
        unsplit_blocks = row_blocks;
        column_splits = 1;
        if (p.threads > 1 && tiles < 4 * p.threads) {
            unsplit_blocks = 0;
            column_splits = min(panels, ceil_div(p.threads, row_blocks));
        } else if (p.threads > 1) {
            unsplit_blocks = row_blocks = ceil_div(row_blocks, p.threads) * p.threads;
            if (row_blocks > p.threads) {
                unsplit_blocks -= p.threads;
                column_splits = max(1, min(MAX_COLUMN_SPLITS, panels * halves / MIN_SPLIT_PANELS));
            }
        }
        tasks = unsplit_blocks + (row_blocks - unsplit_blocks) * column_splits;
        block_tiles = ceil_div(tiles, row_blocks);
        const int64_t task_panels = unsplit_blocks > 0 ? panels : ceil_div(panels, column_splits);
        chunk_panels = min(task_panels, max(1, BLOCK_COLUMNS / NR / halves));
        tile_size = Kernel::ROWS * NR;
        const int64_t depth = min(ceil_div(p.depth, Kernel::GROUP) * Kernel::GROUP, Kernel::DEPTH);
        slice_bytes = aligned(block_tiles * depth * Kernel::A_BYTES);
        keeps_slices = task_panels > chunk_panels;
        a_bytes = slice_bytes * (keeps_slices ? ceil_div(p.depth, Kernel::DEPTH) : 1);
        b_bytes = aligned(depth * NR * 4);
        c_bytes = aligned(chunk_panels * halves * block_tiles * tile_size * 4);
        scale_bytes = aligned(block_tiles * Kernel::ROWS * static_cast<int64_t>(sizeof(RowScale)));
        bytes = a_bytes + b_bytes + c_bytes + scale_bytes;
    }
};

template <class Kernel> struct GemmContext {
    const GemmProblem &p;
    GemmTiling<Kernel> tiling;
    Call &call;
};

// Prefetches the next panel's slice from memory while this one is multiplied, a piece per tile, and the next tile's
// sums from L2. Hardware prefetchers predict neither.
struct Prefetcher {
    const void *from;
    int64_t bytes, piece;

    Prefetcher(const GemmProblem &p, int64_t panel, int64_t k, int64_t depth, int64_t tiles)
        : from(prefetch_address(p.weight, (panel * stored_depth(p.depth, p.dtype) + k) * NR * item_size(p.dtype))),
          bytes(depth * NR * item_size(p.dtype)), piece(ceil_div(ceil_div(bytes, tiles), 64) * 64) {}

    void fetch(int64_t tile) const {
        const int64_t end = min(bytes, (tile + 1) * piece);
        for (int64_t at = tile * piece; at < end; at += 64)
            __builtin_prefetch(prefetch_address(from, at), 0, 2);
    }
    static void fetch_tile(const void *sums, int64_t bytes) {
        for (int64_t at = 0; at < bytes; at += 64)
            __builtin_prefetch(prefetch_address(sums, at), 1, 3);
    }
};

template <class Kernel>
void gemm_task(const GemmProblem &p, const GemmTiling<Kernel> &tiling, Call &call, int64_t task, int thread) {
    using A = typename Kernel::A;
    using C = typename Kernel::C;
    const int64_t column_splits = task < tiling.unsplit_blocks ? 1 : tiling.column_splits,
                  split_task = max(0, task - tiling.unsplit_blocks);
    const int64_t row_block = min(task, tiling.unsplit_blocks) + split_task / column_splits,
                  split = split_task % column_splits;
    const int64_t first = tiling.tiles * row_block / tiling.row_blocks,
                  last = tiling.tiles * (row_block + 1) / tiling.row_blocks;
    const int64_t from = tiling.panels * split / column_splits, to = tiling.panels * (split + 1) / column_splits;
    const int64_t tiles = last - first, row_begin = p.first + first * Kernel::ROWS, row_end = p.first + p.rows;
    char *scratch = p.workspace + thread * tiling.bytes;
    float *b_buffer = reinterpret_cast<float *>(scratch + tiling.a_bytes);
    C *sums = reinterpret_cast<C *>(scratch + tiling.a_bytes + tiling.b_bytes);
    RowScale *scales = reinterpret_cast<RowScale *>(scratch + tiling.a_bytes + tiling.b_bytes + tiling.c_bytes);
    if (tiles == 0)
        return;
    const bool single_slice = p.depth - p.skip <= Kernel::DEPTH - p.skip % Kernel::DEPTH && !p.gated;
    if (p.prepare != nullptr)
        p.prepare(p.source, row_begin, min(row_end - row_begin, tiles * Kernel::ROWS), scales);

    for (int64_t chunk = from; chunk < to; chunk += tiling.chunk_panels) {
        const int64_t chunk_end = min(chunk + tiling.chunk_panels, to);
        // slices end where they would without a skip, so that the remaining sums are bitwise the same
        for (int64_t k = p.skip, depth; k < p.depth; k += depth) {
            if (call.interrupted(thread))
                return;
            depth = min(p.depth - k, Kernel::DEPTH - k % Kernel::DEPTH);
            const int64_t groups = ceil_div(depth, Kernel::GROUP);
            const int64_t tile_bytes = groups * Kernel::GROUP * Kernel::A_BYTES;
            char *a = scratch + (tiling.keeps_slices ? k / Kernel::DEPTH * tiling.slice_bytes : 0);
            if (chunk == from) // else still packed
                for (int64_t i = 0; i < tiles; ++i) {
                    const int64_t m = row_begin + i * Kernel::ROWS;
                    const int count = static_cast<int>(min(row_end - m, Kernel::ROWS));
                    p.pack(p.source, m, count, k, depth, scales + i * Kernel::ROWS, a + i * tile_bytes);
                }
            const bool last_slice = k + depth == p.depth;
            for (int64_t panel = chunk; panel < chunk_end; ++panel)
                for (int64_t half = 0; half < tiling.halves; ++half) {
                    const void *b = Kernel::panel(p, panel * tiling.halves + half, k, depth, b_buffer);
                    C *column = sums + ((panel - chunk) * tiling.halves + half) * tiles * tiling.tile_size;
                    const int width = static_cast<int>(min(p.columns - panel * NR, NR));
                    int64_t next = panel * tiling.halves + half + 1, next_k = k;
                    if (next == chunk_end * tiling.halves) { // the next slice of the depth, then the next chunk
                        next = last_slice ? next : chunk * tiling.halves;
                        next_k = last_slice ? p.skip : k + depth;
                    }
                    const Prefetcher prefetcher(p, next, next_k, depth, tiles);
                    for (int64_t i = 0; i < tiles; ++i) {
                        const int64_t m = row_begin + i * Kernel::ROWS;
                        const int count = static_cast<int>(min(row_end - m, Kernel::ROWS));
                        // sums complete after one slice need not be kept for the next
                        C *tile = single_slice ? sums : column + i * tiling.tile_size;
                        prefetcher.fetch(i);
                        if (last_slice && half + 1 == tiling.halves && p.prefetch != nullptr)
                            p.prefetch(p.source, m, count, panel * NR);
                        if (k > p.skip)
                            Prefetcher::fetch_tile(tile + tiling.tile_size, tiling.tile_size * 4);
                        Kernel::multiply(
                            count, width, reinterpret_cast<const A *>(a + i * tile_bytes), b,
                            Kernel::GROUP == KB ? depth : groups * Kernel::GROUP, tile, k > p.skip);
                        if (last_slice && half + 1 == tiling.halves) {
                            const C *gate = p.gated ? tile - tiles * tiling.tile_size : nullptr;
                            p.finish(p.source, tile, gate, m, count, panel * NR, width, scales + i * Kernel::ROWS);
                        }
                    }
                }
        }
    }
}

template <class Kernel> void run_gemm(const GemmProblem &p, Call &call) {
    GemmContext<Kernel> context{p, GemmTiling<Kernel>(p), call};
    call.run(
        p.threads, context.tiling.tasks,
        [](void *data, int64_t task, int thread) {
            const GemmContext<Kernel> &all = *static_cast<const GemmContext<Kernel> *>(data);
            gemm_task<Kernel>(all.p, all.tiling, all.call, task, thread);
        },
        &context);
}

inline int64_t gemm_workspace(const GemmProblem &p) {
#if defined(__AVX512BF16__)
    if (p.use_bf16)
        return p.threads * GemmTiling<Bf16Kernel>(p).bytes;
#endif
    return p.threads * (p.use_i8 ? GemmTiling<I8Kernel>(p).bytes : GemmTiling<F32Kernel>(p).bytes);
}

inline void multiply(const GemmProblem &p, Call &call) {
#if defined(__AVX512BF16__)
    if (p.use_bf16)
        return run_gemm<Bf16Kernel>(p, call);
#endif
    if (p.use_i8)
        run_gemm<I8Kernel>(p, call);
    else
        run_gemm<F32Kernel>(p, call);
}

} // namespace KINEMA_ISA
} // namespace kinema
