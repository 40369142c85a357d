// A convolution with few output channels (such as RGB): vectors hold neighbouring pixels instead of channels.
//
// A GEMM tile has NR columns, of which three outputs would use three. Here each line is transposed once into planes,
// one per channel; a tile is FEW_VECTORS vectors of pixels for each output, and every vector loaded from a plane is
// multiplied by the weights of all outputs.
#pragma once

#include <cstdint>

#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

constexpr int64_t FEW_OUTPUTS = 3;
constexpr int FEW_VECTORS = 4; // twelve accumulators with three outputs, as in a GEMM tile

inline bool has_few_outputs(const kinema_conv3d_args &a, const ConvShape &shape) {
    return a.out_channels <= FEW_OUTPUTS && a.stride_t == 1 && a.stride_h == 1 && a.stride_w == 1 &&
           shape.out_w >= FEW_VECTORS * W;
}

// tile[R][FEW_VECTORS · W] = (accumulate: tile +) Σ over channels and taps of a line. planes: [channels] at a stride,
// from the tile's first pixel; weights: [channels][taps][R].
template <int R>
__attribute__((noinline)) void micro_kernel_few(
    const float *planes, int64_t stride, int64_t channels, int64_t taps, const float *weights, float *tile,
    bool accumulate) {
    V sums[R][FEW_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < FEW_VECTORS; ++v)
            sums[r][v] = set1(0.0f);
    for (int64_t c = 0; c < channels; ++c, planes += stride)
        for (int64_t tap = 0; tap < taps; ++tap, weights += R) {
            V weight[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
                weight[r] = set1(weights[r]);
#pragma GCC unroll 4
            for (int v = 0; v < FEW_VECTORS; ++v) {
                const V x = load(planes + tap + v * W);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r)
                    sums[r][v] = fma(x, weight[r], sums[r][v]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < FEW_VECTORS; ++v, tile += W)
            store(tile, accumulate ? add(load(tile), sums[r][v]) : sums[r][v]);
}

// Lines as tiles [channels][pixels of a tile, plus those its last taps read], in a ring buffer like theirs; and the
// weights in the order of micro_kernel_few(). So each tile is read sequentially.
struct PlanarTiles {
    const kinema_conv3d_args &a;
    const ConvShape &shape;
    int64_t ring_lines, stride, tiles; // lines of the ring; pixels of a tile; tiles of a line
    float *memory;

    static constexpr int64_t PIXELS = FEW_VECTORS * W; // of the output

    PlanarTiles(const kinema_conv3d_args &args, const ConvShape &of, int64_t count, char *scratch)
        : a(args), shape(of), ring_lines(count), stride(PIXELS + args.kernel_w - 1), tiles(ceil_div(of.out_w, PIXELS)),
          memory(reinterpret_cast<float *>(scratch)) {}

    int64_t floats() const { return shape.in_frames * ring_lines * tiles * a.in_channels * stride; }
    int64_t bytes() const {
        return 4 * (floats() + a.kernel_t * a.kernel_h * a.kernel_w * a.in_channels * a.out_channels);
    }
    float *weights() const { return memory + floats(); } // after the lines
    float *tile_at(int64_t t, int64_t y, int64_t tile) const {
        return memory + ((t * ring_lines + y % ring_lines) * tiles + tile) * a.in_channels * stride;
    }

    // From panels [taps of time and height][taps of width][channels][NR] to [..][channels][taps of width][outputs].
    void pack_weights() const {
        const float *panel = static_cast<const float *>(a.weight);
        float *to = weights();
        for (int64_t line = 0; line < a.kernel_t * a.kernel_h; ++line, panel += a.kernel_w * a.in_channels * NR)
            for (int64_t c = 0; c < a.in_channels; ++c)
                for (int64_t tap = 0; tap < a.kernel_w; ++tap)
                    for (int64_t o = 0; o < a.out_channels; ++o)
                        *to++ = panel[(tap * a.in_channels + c) * NR + o];
    }

    void transpose_line(const float *line, int64_t t, int64_t y) const {
        const int64_t channels = a.in_channels;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const float *pixel = line + tile * PIXELS * channels;
            const int64_t count = min(stride, shape.width - tile * PIXELS);
            float *to = tile_at(t, y, tile);
            int64_t i = 0;
            for (; i + 4 <= count; i += 4, pixel += 4 * channels)
                for (int64_t c = 0; c < channels; ++c) {
                    float *four = to + c * stride + i;
                    four[0] = pixel[c];
                    four[1] = pixel[c + channels];
                    four[2] = pixel[c + 2 * channels];
                    four[3] = pixel[c + 3 * channels];
                }
            for (; i < stride; ++i, pixel += channels)
                for (int64_t c = 0; c < channels; ++c)
                    to[c * stride + i] = i < count ? pixel[c] : 0.0f;
        }
    }

    // The output line that starts at `row`; the first `skip` taps of time see only zeros.
    template <int R> void convolve(int64_t row, int64_t t, int64_t h, int64_t skip) const {
        float tile[R * PIXELS];
        const int64_t step = a.in_channels * a.kernel_w * R, first = skip * a.kernel_h;
        for (int64_t w = 0; w < shape.out_w; w += PIXELS) {
            for (int64_t taps = first; taps < a.kernel_t * a.kernel_h; ++taps)
                micro_kernel_few<R>(
                    tile_at(t + taps / a.kernel_h, h + taps % a.kernel_h, w / PIXELS), stride, a.in_channels,
                    a.kernel_w, weights() + taps * step, tile, taps > first);
            const int64_t count = min(shape.out_w - w, PIXELS), at = (row + w) * R;
            for (int64_t i = 0; i < count; ++i)
                for (int r = 0; r < R; ++r) {
                    float y = tile[r * PIXELS + i] + (a.bias != nullptr ? a.bias[r] : 0.0f);
                    if (a.residual != nullptr)
                        y = a.residual[at + i * R + r] + y;
                    a.out[at + i * R + r] = y;
                }
        }
    }
    void convolve_line(int64_t row, int64_t t, int64_t h, int64_t skip) const {
        if (a.out_channels == 1)
            convolve<1>(row, t, h, skip);
        else if (a.out_channels == 2)
            convolve<2>(row, t, h, skip);
        else
            convolve<3>(row, t, h, skip);
    }
};

} // namespace KINEMA_ISA
} // namespace kinema
