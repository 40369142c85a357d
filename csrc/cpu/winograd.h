// 3×3 convolution of a frame with 16 multiplications instead of 36 per tile of 2×2 outputs, or 36 instead of 144 per
// tile of 4×4.
//
// Inputs and sums are transformed (winograd_transforms.h); between the transforms each position is a GEMM of [tiles,
// taps of time · channels] with [taps of time · channels, outputs]. The frames of a tile are adjacent in the left
// matrices, so a frame is transformed once for all the taps that read it.
#pragma once

#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t WINOGRAD_ROWS = 96;     // per block, sharing one pass over the weight; half for 36 positions
constexpr int64_t LARGE_WEIGHT = 8 << 20; // bytes, too large for L2: a pass over it serves more rows,
constexpr int64_t LARGE_BLOCK = 10 << 20; // as many as fit in this many bytes
constexpr int64_t WINOGRAD_DEPTH = 320;   // of a panel slice in L1
constexpr int64_t WINOGRAD_COLUMNS = 384; // columns whose sums wait for the output transform
constexpr int64_t WINOGRAD_FRAMES = 4;    // output frames per block
constexpr int64_t PREFETCH_TILES = 3;     // ahead of the tile being finished

// ---- tiling

struct WinogradTiling {
    kinema_conv3d_args a; // of the padded input
    ConvShape shape;      // of the input, padded to whole tiles
    bool fused_upsample;  // 2x nearest upsampling is part of the input transform: the line buffer holds the small frame
    int64_t outputs;      // per tile side
    int64_t step, size, positions; // input pixels between tiles and per patch side; positions with non-zero products
    int64_t out_h, out_w, tiles_h, tiles_w;          // of the output
    int64_t channels, depth, panels, chunk;          // channels padded to groups; panels per output transform
    int64_t band, ring_lines;                        // tile rows per band, and lines that they read
    int64_t groups, frames;                          // per block: groups of MR tiles, and output frames
    int64_t left_position_stride, left_group_stride; // in floats, of the left matrices
    int64_t sums_stride;
    int64_t lines_bytes, left_bytes, thread_bytes;

    static bool fuses_upsample(const kinema_conv3d_args &a) {
        return a.winograd == 2 && a.upsample == 2 && a.kernel_t == 1 && a.pad_top == 1 && a.pad_bottom == 1 &&
               a.pad_left == 1 && a.pad_right == 1;
    }
    static int64_t padding_to_tiles(int64_t count, int64_t tile) { return ceil_div(count, tile) * tile - count; }
    static kinema_conv3d_args padded_args(kinema_conv3d_args a) {
        if (fuses_upsample(a)) {
            a.upsample = 1;
            return a;
        }
        a.pad_bottom += padding_to_tiles(a.height * a.upsample + a.pad_top + a.pad_bottom - 2, a.winograd);
        a.pad_right += padding_to_tiles(a.width * a.upsample + a.pad_left + a.pad_right - 2, a.winograd);
        return a;
    }

    explicit WinogradTiling(const kinema_conv3d_args &args)
        : a(padded_args(args)), shape(a), fused_upsample(fuses_upsample(args)), outputs(args.winograd),
          step(fused_upsample ? 1 : outputs), size(fused_upsample ? 3 : patch_size(outputs)), positions(size * size) {
        out_h = args.height * args.upsample + args.pad_top + args.pad_bottom - 2;
        out_w = args.width * args.upsample + args.pad_left + args.pad_right - 2;
        tiles_h = ceil_div(out_h, outputs);
        tiles_w = ceil_div(out_w, outputs);
        channels = padded_channels(a.in_channels);
        depth = a.kernel_t * channels;
        panels = ceil_div(a.out_channels, NR);
        chunk = min(panels, max(1, WINOGRAD_COLUMNS / NR));
        frames = min(shape.out_t, WINOGRAD_FRAMES);
        groups = max(1, WINOGRAD_ROWS / (outputs / 2 * MR * frames));
        if (positions * panels * depth * NR * 4 > LARGE_WEIGHT) {
            const int64_t group = (frames + shape.history) * channels * MR + chunk * frames * MR * NR;
            groups = max(groups, LARGE_BLOCK / (positions * group * 4));
        }
        const int64_t line = shape.in_frames * shape.line * 4;
        const int64_t enough = ceil_div(4 * groups * MR * max(1, args.threads), tiles_w); // enough for all threads
        band = max(enough, (BAND_BYTES / line - (size - step)) / step);
        band = min(tiles_h, ceil_div(tiles_h, ceil_div(tiles_h, band)));
        ring_lines = (band - 1) * step + size;
        groups = min(groups, ceil_div(band * tiles_w, MR));
        left_group_stride = (frames + shape.history) * channels * MR;
        left_position_stride = groups * left_group_stride + NR; // padded, or all positions map to the same cache sets
        sums_stride = chunk * groups * frames * MR * NR + NR;
        lines_bytes = LineBuffer::bytes(shape, ring_lines);
        left_bytes = aligned(positions * left_position_stride * 4);
        thread_bytes = left_bytes + aligned(positions * sums_stride * 4);
    }
    int64_t bytes() const { return lines_bytes + max(1, a.threads) * thread_bytes; }
};

// A band of a frame.
struct Band {
    const WinogradTiling &w;
    const LineBuffer &lines;
    int64_t b, first, rows;      // sample, and rows of tiles
    int64_t leading_zero_frames; // of the past frames
    char *scratch;

    int64_t groups() const { return ceil_div(rows * w.tiles_w, MR); }
};

// ---- a block: some groups of tiles in some output frames

struct Block {
    int64_t group, groups; // in the band
    int64_t frame, frames; // of the output
    float *left, *sums;
};

// Transforms the patches of up to MR tiles of frame t into the left matrices.
template <int SIZE> void transform_group(const Band &band, int64_t tile, int count, int64_t t, float *to) {
    const WinogradTiling &w = band.w;
    const float *lines[MR][SIZE];
    for (int r = 0; r < count; ++r) {
        const int64_t y = (band.first + (tile + r) / w.tiles_w) * w.step, x = (tile + r) % w.tiles_w * w.step;
        for (int i = 0; i < SIZE; ++i)
            lines[r][i] = band.lines.line(t, y + i) + x * w.a.in_channels;
    }
    for (int64_t c = 0; c < w.channels; c += W)
        for (int r = 0; r < count; ++r) {
            V out[SIZE][SIZE];
            const int lanes = static_cast<int>(max(0, min(w.a.in_channels - c, W)));
            if (lanes == W)
                input_transform<SIZE>(lines[r], c, w.a.in_channels, W, out);
            else
                input_transform<SIZE>(lines[r], c, w.a.in_channels, lanes, out);
            for (int i = 0; i < SIZE; ++i)
                for (int j = 0; j < SIZE; ++j)
                    store_channels(to + (i * SIZE + j) * w.left_position_stride + r * KB, c, w.channels, out[i][j]);
        }
}

inline void transform_block(const Band &band, const Block &block) {
    const WinogradTiling &w = band.w;
    const int64_t tiles = band.rows * w.tiles_w;
    for (int64_t g = 0; g < block.groups; ++g) {
        const int64_t tile = (block.group + g) * MR;
        const int count = static_cast<int>(min(tiles - tile, MR));
        for (int64_t t = max(0, band.leading_zero_frames - block.frame); t < block.frames + w.shape.history; ++t) {
            float *to = block.left + g * w.left_group_stride + t * w.channels * MR;
            if (w.fused_upsample)
                transform_group<3>(band, tile, count, block.frame + t, to);
            else if (w.outputs == 2)
                transform_group<4>(band, tile, count, block.frame + t, to);
            else
                transform_group<6>(band, tile, count, block.frame + t, to);
        }
    }
}

// The products of one position with one panel, into `sums` [groups][frames][MR][NR]. Prefetches the next panel.
inline void multiply_position(
    const Band &band, const Block &block, int columns, const float *left, const float *panel, const void *next,
    float *sums) {
    const WinogradTiling &w = band.w;
    const int64_t tiles = band.rows * w.tiles_w, slices = ceil_div(w.depth, WINOGRAD_DEPTH);
    const int64_t piece = ceil_div(w.depth * NR, 16 * slices * block.groups * block.frames) * 16;
    int64_t prefetched = 0;
    for (int64_t slice = 0; slice < slices; ++slice) {
        const int64_t from = w.depth / KB * slice / slices * KB, to = w.depth / KB * (slice + 1) / slices * KB;
        for (int64_t g = 0; g < block.groups; ++g) {
            const int count = static_cast<int>(min(tiles - (block.group + g) * MR, MR));
            for (int64_t t = 0; t < block.frames; ++t) {
                for (const int64_t end = min(prefetched + piece, w.depth * NR); prefetched < end; prefetched += 16)
                    __builtin_prefetch(prefetch_address(next, prefetched * 4), 0, 2);
                // all-zero past frames contribute nothing and are skipped
                const int64_t zeros = max(0, band.leading_zero_frames - block.frame - t);
                const int64_t start = zeros * w.channels, k = max(from, start);
                if (k < to)
                    multiply_f32(
                        count, columns, left + g * w.left_group_stride + (t * w.channels + k) * MR, Packed{},
                        panel + k * NR, to - k, sums + (g * block.frames + t) * MR * NR, NR, k > start);
            }
        }
    }
}

// Adds bias and residual to a tile's outputs, `lanes` of its channels, and stores the `rows` and `columns` inside the
// frame.
template <int OUTPUTS>
inline __attribute__((always_inline)) void finish_tile(
    const WinogradTiling &w, const V (*out)[OUTPUTS], int64_t pixel, int64_t rows, int64_t columns, int64_t n,
    int lanes) {
    const V bias = w.a.bias != nullptr ? load_lanes(w.a.bias + n, lanes) : set1(0.0f);
#pragma GCC unroll 4
    for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int64_t j = 0; j < columns; ++j) {
            const int64_t at = (pixel + i * w.out_w + j) * w.a.out_channels + n;
            V v = add(out[i][j], bias);
            if (w.a.residual != nullptr)
                v = add(load_lanes(w.a.residual + at, lanes), v);
            store_lanes(w.a.out + at, v, lanes);
        }
}

// Prefetches the residual of channels `from` to `to` of a whole tile: its lines are far apart.
template <int OUTPUTS> inline void prefetch_residual(const WinogradTiling &w, int64_t pixel, int64_t from, int64_t to) {
    for (int64_t i = 0; i < OUTPUTS; ++i)
        for (int64_t j = 0; j < OUTPUTS; ++j)
            for (int64_t n = from; n < to; n += 16) // a cache line
                __builtin_prefetch(w.a.residual + (pixel + i * w.out_w + j) * w.a.out_channels + n, 0, 3);
}

// Transforms the sums of panels `first` to `end` into outputs.
template <int SIZE> void finish_block(const Band &band, const Block &block, int64_t first, int64_t end) {
    const WinogradTiling &w = band.w;
    constexpr int OUTPUTS = outputs_of(SIZE);
    const int64_t tiles = band.rows * w.tiles_w;
    for (int64_t g = 0; g < block.groups; ++g)
        for (int64_t t = 0; t < block.frames; ++t)
            for (int64_t r = 0, tile = (block.group + g) * MR; r < MR && tile < tiles; ++r, ++tile) {
                const int64_t frame = band.b * w.shape.out_t + block.frame + t;
                const int64_t y = (band.first + tile / w.tiles_w) * OUTPUTS, x = tile % w.tiles_w * OUTPUTS;
                const int64_t pixel = (frame * w.out_h + y) * w.out_w + x;
                const int64_t rows = min(w.out_h - y, OUTPUTS), columns = min(w.out_w - x, OUTPUTS);
                if (w.a.residual != nullptr && x + (PREFETCH_TILES + 1) * OUTPUTS <= w.out_w && y + OUTPUTS <= w.out_h)
                    prefetch_residual<OUTPUTS>(
                        w, pixel + PREFETCH_TILES * OUTPUTS, first * NR, min(end * NR, w.a.out_channels));
                for (int64_t panel = first; panel < end; ++panel)
                    for (int64_t n = panel * NR; n < min(panel * NR + NR, w.a.out_channels); n += W) {
                        const int64_t at = ((panel - first) * block.groups + g) * block.frames + t;
                        V out[OUTPUTS][OUTPUTS];
                        output_transform<SIZE>(block.sums + at * MR * NR + r * NR + n % NR, w.sums_stride, out);
                        const int lanes = static_cast<int>(min(w.a.out_channels - n, W));
                        if (rows == OUTPUTS && columns == OUTPUTS && lanes == W)
                            finish_tile<OUTPUTS>(w, out, pixel, OUTPUTS, OUTPUTS, n, W);
                        else
                            finish_tile<OUTPUTS>(w, out, pixel, rows, columns, n, lanes);
                    }
            }
}

inline void convolve_block(const Band &band, const Block &block, Call &call, int thread) {
    const WinogradTiling &w = band.w;
    const float *weight = static_cast<const float *>(w.a.weight);
    transform_block(band, block);
    for (int64_t first = 0; first < w.panels; first += w.chunk) {
        const int64_t end = min(first + w.chunk, w.panels);
        for (int64_t position = 0; position < w.positions; ++position) {
            if (call.interrupted(thread))
                return;
            // a fused upsample uses rows and columns 0, 1 and 3
            const int64_t row = position / w.size, column = position % w.size;
            const int64_t stored = w.fused_upsample ? (row + row / 2) * 4 + column + column / 2 : position;
            for (int64_t panel = first; panel < end; ++panel) {
                const float *right = weight + (stored * w.panels + panel) * w.depth * NR;
                multiply_position(
                    band, block, static_cast<int>(min(w.a.out_channels - panel * NR, NR)),
                    block.left + position * w.left_position_stride, right, prefetch_address(right, w.depth * NR * 4),
                    block.sums + position * w.sums_stride + (panel - first) * block.groups * block.frames * MR * NR);
            }
        }
        if (w.fused_upsample)
            finish_block<3>(band, block, first, end);
        else if (w.outputs == 2)
            finish_block<4>(band, block, first, end);
        else
            finish_block<6>(band, block, first, end);
    }
}

inline void convolve_band(const Band &band, Call &call) {
    const WinogradTiling &w = band.w;
    const int64_t times = ceil_div(w.shape.out_t, w.frames), threads = max(1, w.a.threads);
    // round few blocks up to a multiple of the threads, so that none is idle
    int64_t blocks = ceil_div(band.groups(), w.groups);
    if (blocks * times < 4 * threads)
        blocks = min(band.groups(), ceil_div(ceil_div(blocks * times, threads) * threads, times));
    struct Work {
        const Band &band;
        Call &call;
        int64_t blocks, times;
    } work{band, call, blocks, times};
    call.run(
        static_cast<int>(threads), blocks * times,
        [](void *data, int64_t task, int thread) {
            const Work &all = *static_cast<const Work *>(data);
            const WinogradTiling &tiling = all.band.w;
            char *scratch = all.band.scratch + thread * tiling.thread_bytes;
            const int64_t block = task / all.times, time = task % all.times, groups = all.band.groups();
            const int64_t from = groups * block / all.blocks, frame = time * tiling.frames;
            convolve_block(
                all.band,
                {from, groups * (block + 1) / all.blocks - from, frame, min(tiling.shape.out_t - frame, tiling.frames),
                 reinterpret_cast<float *>(scratch), reinterpret_cast<float *>(scratch + tiling.left_bytes)},
                all.call, thread);
        },
        &work);
}

inline int64_t winograd_workspace(const kinema_conv3d_args &a) { return WinogradTiling(a).bytes(); }

inline void winograd(const kinema_conv3d_args &args, Call &call) {
    const WinogradTiling w(args);
    char *memory = static_cast<char *>(args.workspace);
    const LineBuffer lines(w.a, w.shape, w.ring_lines, memory);
    for (int64_t b = 0; b < args.batch; ++b)
        for (int64_t first = 0, filled = 0; first < w.tiles_h; first += w.band) {
            const int64_t rows = min(w.band, w.tiles_h - first), end = (first + rows - 1) * w.step + w.size;
            lines.fill(b, filled, end, call);
            filled = end;
            convolve_band(
                {w, lines, b, first, rows, lines.leading_zero_frames(first * w.step, end), memory + w.lines_bytes},
                call);
        }
}

} // namespace KINEMA_ISA
} // namespace kinema
