// A causal convolution as an implicit GEMM, whose im2col rows are gathered from the line buffer of conv3d_copy.h in
// runs of kernel_w · channels numbers. Weights packed for Winograd go through winograd.h, few output channels through
// conv3d_few.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

struct ConvSource {
    kinema_linear_args epilogue_args;
    const kinema_conv3d_args *a;
    ConvShape shape;
    const LineBuffer *lines;
};
// linear's epilogue finds its arguments at the address of the source
static_assert(std::is_standard_layout_v<ConvSource> && offsetof(ConvSource, epilogue_args) == 0);

// Where an output row is.
struct OutputPosition {
    int64_t b, t, h, w;
    OutputPosition(const ConvShape &shape, int64_t row)
        : b(row / (shape.out_w * shape.out_h * shape.out_t)), t(row / (shape.out_w * shape.out_h) % shape.out_t),
          h(row / shape.out_w % shape.out_h), w(row % shape.out_w) {}
};

inline void
pack_im2col(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *, void *to) {
    const ConvSource &conv = *static_cast<const ConvSource *>(source);
    const kinema_conv3d_args &a = *conv.a;
    const int64_t run = a.kernel_w * a.in_channels; // contiguous in a line
    for (int r = 0; r < count; ++r) {
        const OutputPosition pos(conv.shape, m + r);
        for (int64_t i = k; i < k + depth;) {
            const int64_t taps = i / run, inside = i % run, here = min(run - inside, k + depth - i);
            const float *line =
                conv.lines->line(pos.t * a.stride_t + taps / a.kernel_h, pos.h * a.stride_h + taps % a.kernel_h);
            pack_row(static_cast<float *>(to), r, i - k, line + pos.w * a.stride_w * a.in_channels + inside, here);
            i += here;
        }
    }
}

inline GemmProblem conv_gemm(const kinema_conv3d_args &a, ConvSource &source) {
    const ConvShape &shape = source.shape;
    kinema_linear_args &e = source.epilogue_args;
    e.batch = a.batch;
    e.tokens = shape.out_t * shape.out_h * shape.out_w;
    e.out_features = a.out_channels;
    e.bias = a.bias;
    e.residual = a.residual;
    e.out = a.out;
    e.residual_stride_s = e.out_stride_s = a.out_channels;
    e.residual_stride_b = e.out_stride_b = e.tokens * a.out_channels;
    GemmProblem p{};
    p.columns = a.out_channels;
    p.depth = a.kernel_t * a.kernel_h * a.kernel_w * a.in_channels;
    p.weight = a.weight;
    p.dtype = KINEMA_F32;
    p.threads = a.threads > 1 ? a.threads : 1;
    p.pack = pack_im2col;
    p.prepare = load_scales;
    p.prefetch = prefetch_results;
    p.finish = finish<float>;
    p.source = &source;
    return p;
}

// With few output channels packing would cost as much as multiplying: then the product reads unpacked rows,
// neighbouring pixels of a line at a stride of one pixel, one run of taps after another.
inline bool reads_in_place(const kinema_conv3d_args &a, const ConvShape &shape) {
    const int64_t depth = a.kernel_t * a.kernel_h * a.kernel_w * a.in_channels;
    return a.out_channels <= 2 * NR && depth <= 1024 && shape.out_w >= 4 * MR;
}

// The output line that starts at `row`; the first `skip` taps of time see only zeros.
inline void convolve_line(const ConvSource &conv, const GemmProblem &p, int64_t row, int64_t skip) {
    const kinema_conv3d_args &a = *conv.a;
    const ConvShape &shape = conv.shape;
    const OutputPosition pos(shape, row);
    const int64_t run = a.kernel_w * a.in_channels, step = a.stride_w * a.in_channels, first = skip * a.kernel_h;
    const float *panels = static_cast<const float *>(a.weight);
    float tile[MR * NR];
    RowScale ones[MR];
    for (RowScale &one : ones)
        one = {1.0f, 0};
    for (int64_t n = 0; n < a.out_channels; n += NR, panels += p.depth * NR) {
        const int columns = static_cast<int>(min(a.out_channels - n, NR));
        for (int64_t w = 0; w < shape.out_w; w += MR) {
            const int count = static_cast<int>(min(shape.out_w - w, MR));
            for (int64_t taps = first; taps < a.kernel_t * a.kernel_h; ++taps) {
                const float *line =
                    conv.lines->line(pos.t * a.stride_t + taps / a.kernel_h, pos.h * a.stride_h + taps % a.kernel_h);
                multiply_f32(
                    count, columns, line + w * step, RowMajor{step}, panels + taps * run * NR, run, tile, NR,
                    taps > first);
            }
            p.finish(p.source, tile, nullptr, row + w, count, n, columns, ones);
        }
    }
}

// How a call is split: output lines per band, input lines that they read.
struct ConvBands {
    int64_t band, ring_lines;

    ConvBands(const kinema_conv3d_args &a, const ConvShape &shape) {
        const int64_t fits = (BAND_BYTES / (shape.in_frames * shape.line * 4) - a.kernel_h) / a.stride_h + 1;
        const int64_t enough = ceil_div(2 * BLOCK_ROWS * max(1, a.threads), shape.out_w); // enough for all threads
        band = min(shape.out_h, max(enough, fits));
        band = ceil_div(shape.out_h, ceil_div(shape.out_h, band));
        ring_lines = (band - 1) * a.stride_h + max(a.kernel_h, a.stride_h); // skipped lines are filled too
    }
    // Frames that can be computed together: whole frames are contiguous.
    int64_t frames(const ConvShape &shape) const { return band == shape.out_h ? shape.out_t : 1; }
    int64_t rows(const ConvShape &shape, int64_t first, int64_t count) const {
        return ((count - 1) * shape.out_h + min(band, shape.out_h - first)) * shape.out_w;
    }
};

inline int64_t conv3d_workspace(const kinema_conv3d_args &a) {
    if (a.winograd != 0)
        return winograd_workspace(a);
    const ConvShape shape(a);
    const ConvBands bands(a, shape);
    if (has_few_outputs(a, shape))
        return LineBuffer::bytes(shape, bands.ring_lines) + PlanarTiles(a, shape, bands.ring_lines, nullptr).bytes();
    ConvSource source{{}, &a, shape, nullptr};
    GemmProblem p = conv_gemm(a, source);
    int64_t scratch = 0;
    for (int64_t first = 0; first < shape.out_h; first += bands.band)
        for (int64_t count = bands.frames(shape); count > 0; --count) {
            p.rows = bands.rows(shape, first, count);
            scratch = max(scratch, gemm_workspace(p)); // fewer rows may need more
        }
    return LineBuffer::bytes(shape, bands.ring_lines) + scratch;
}

inline void conv3d(const kinema_conv3d_args &a, Call &call) {
    if (a.winograd != 0)
        return winograd(a, call);
    const ConvShape shape(a);
    const ConvBands bands(a, shape);
    char *memory = static_cast<char *>(a.workspace);
    const LineBuffer lines(a, shape, bands.ring_lines, memory);
    ConvSource source{{}, &a, shape, &lines};
    GemmProblem p = conv_gemm(a, source);
    p.workspace = memory + LineBuffer::bytes(shape, bands.ring_lines);
    const bool few = has_few_outputs(a, shape), in_place = reads_in_place(a, shape);
    const PlanarTiles planar_tiles(a, shape, bands.ring_lines, p.workspace);
    if (few)
        planar_tiles.pack_weights();
    const auto transpose = [&](int64_t t, int64_t y) {
        if (few)
            planar_tiles.transpose_line(lines.line(t, y), t, y);
    };
    const auto convolve = [&](int64_t row, int64_t skip) {
        const OutputPosition pos(shape, row);
        if (few)
            planar_tiles.convolve_line(row, pos.t, pos.h, skip);
        else
            convolve_line(source, p, row, skip);
    };
    for (int64_t b = 0; b < a.batch; ++b) {
        int64_t filled = 0;
        for (int64_t first = 0; first < shape.out_h; first += bands.band) {
            const int64_t top = first * a.stride_h;
            const int64_t bottom = (min(first + bands.band, shape.out_h) - 1) * a.stride_h + a.kernel_h;
            lines.fill(b, filled, bottom, call, transpose);
            filled = bottom;
            const int64_t zeros = lines.leading_zero_frames(top, bottom);
            const auto skip = [&](int64_t t) { return min(max(0, zeros - t * a.stride_t), a.kernel_t - 1); };
            for (int64_t t = 0, count; t < shape.out_t; t += count) {
                for (count = 1; count < bands.frames(shape) - t && skip(t + count) == skip(t);)
                    ++count;
                p.first = ((b * shape.out_t + t) * shape.out_h + first) * shape.out_w;
                p.rows = bands.rows(shape, first, count);
                p.skip = skip(t) * a.kernel_h * a.kernel_w * a.in_channels;
                if (!few && !in_place)
                    multiply(p, call);
                else
                    parallel_for_rows(
                        call, a.threads, p.rows / shape.out_w, TASK_VALUES, // a line at a time
                        [&](int64_t row, int) { convolve(p.first + row * shape.out_w, skip(t)); });
            }
        }
        if (a.cache != nullptr && filled < shape.height)
            lines.fill(b, filled, shape.height, call); // no output reads them, but the cache keeps them
    }
}

} // namespace KINEMA_ISA
} // namespace kinema
