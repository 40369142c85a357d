// A causal convolution as a product that gathers its left matrix from the copy of conv3d_copy.h: runs of
// kernel_w · channels numbers. Weights that are packed for it go through winograd.h.
#pragma once

#include <cstdint>

#include "kinema.h"
#include "pool.h"

namespace kinema {
namespace KINEMA_ISA {

struct ConvSource {
    kinema_linear_args epilogue;
    const kinema_conv3d_args *a;
    ConvShape shape;
    const float *copy;
};

inline void pack_taps(const void *source, int64_t m, int count, int64_t k, int64_t depth, const float *, void *to) {
    const ConvSource &conv = *static_cast<const ConvSource *>(source);
    const kinema_conv3d_args &a = *conv.a;
    const ConvShape &shape = conv.shape;
    const int64_t run = a.kernel_w * a.in_channels; // lies side by side in a line
    for (int r = 0; r < count; ++r) {
        const int64_t w = (m + r) % shape.out_w, h = (m + r) / shape.out_w % shape.out_h;
        const int64_t t = (m + r) / (shape.out_w * shape.out_h) % shape.out_t;
        const int64_t b = (m + r) / (shape.out_w * shape.out_h * shape.out_t);
        const float *corner = conv.copy + b * shape.all + t * a.stride_t * shape.frame + h * a.stride_h * shape.line +
                              w * a.stride_w * a.in_channels;
        for (int64_t i = k; i < k + depth;) {
            const int64_t taps = i / run, inside = i % run, here = least(run - inside, k + depth - i);
            const float *from = corner + taps / a.kernel_h * shape.frame + taps % a.kernel_h * shape.line + inside;
            place(static_cast<float *>(to), r, i - k, from, here);
            i += here;
        }
    }
}

inline Product conv_product(const kinema_conv3d_args &a, ConvSource &source) {
    const ConvShape &shape = source.shape;
    kinema_linear_args &e = source.epilogue;
    e.batch = a.batch;
    e.tokens = shape.out_t * shape.out_h * shape.out_w;
    e.out_features = a.out_channels;
    e.bias = a.bias;
    e.residual = a.residual;
    e.out = a.out;
    e.residual_stride_s = e.out_stride_s = a.out_channels;
    e.residual_stride_b = e.out_stride_b = e.tokens * a.out_channels;
    Product p{};
    p.rows = e.batch * e.tokens;
    p.columns = a.out_channels;
    p.depth = a.kernel_t * a.kernel_h * a.kernel_w * a.in_channels;
    p.weight = a.weight;
    p.dtype = KINEMA_F32;
    p.threads = a.threads > 1 ? a.threads : 1;
    p.pack = pack_taps;
    p.prepare = given_scales;
    p.fetch = fetch_results;
    p.finish = finish<float>;
    p.source = &source;
    return p;
}

// With few output channels packing would cost as much as multiplying: then the product reads rows where they lie,
// neighbours of an output line at a stride of one pixel, a run of taps after the other. The sums are the same, to the
// last bit.
inline bool reads_in_place(const kinema_conv3d_args &a, const ConvShape &shape) {
    const int64_t depth = a.kernel_t * a.kernel_h * a.kernel_w * a.in_channels;
    return a.out_channels <= 2 * NR && depth <= 1024 && shape.out_w >= 4 * MR;
}

inline void convolve_line(const ConvSource &conv, const Product &p, int64_t row) {
    const kinema_conv3d_args &a = *conv.a;
    const ConvShape &shape = conv.shape;
    const int64_t h = row % shape.out_h, t = row / shape.out_h % shape.out_t, b = row / (shape.out_h * shape.out_t);
    const int64_t run = a.kernel_w * a.in_channels, step = a.stride_w * a.in_channels;
    const float *line = conv.copy + b * shape.all + t * a.stride_t * shape.frame + h * a.stride_h * shape.line;
    const float *panels = static_cast<const float *>(a.weight);
    float tile[MR * NR], ones[MR];
    for (float &one : ones)
        one = 1.0f;
    for (int64_t n = 0; n < a.out_channels; n += NR, panels += p.depth * NR)
        for (int64_t w = 0; w < shape.out_w; w += MR) {
            const int count = static_cast<int>(least(shape.out_w - w, MR));
            for (int64_t taps = 0; taps < a.kernel_t * a.kernel_h; ++taps)
                multiply_f32(
                    count, line + taps / a.kernel_h * shape.frame + taps % a.kernel_h * shape.line + w * step,
                    Rowwise{step}, panels + taps * run * NR, run, tile, NR, taps > 0);
            p.finish(
                p.source, tile, nullptr, row * shape.out_w + w, count, n,
                static_cast<int>(least(a.out_channels - n, NR)), ones);
        }
}

inline int64_t conv3d_workspace(const kinema_conv3d_args &a) {
    if (a.winograd != 0)
        return winograd_workspace(a);
    ConvSource source{{}, &a, ConvShape(a), nullptr};
    return aligned(a.batch * source.shape.all * 4) + product_workspace(conv_product(a, source));
}

inline void conv3d(const kinema_conv3d_args &a, Pool &pool) {
    if (a.winograd != 0)
        return winograd(a, pool);
    float *copy = static_cast<float *>(a.workspace);
    ConvSource source{{}, &a, ConvShape(a), copy};
    const ConvShape &shape = source.shape;
    each_row(pool, a.threads, a.batch * shape.seen * shape.height, shape.line, [&](int64_t row, int) {
        const int64_t frame = row / shape.height;
        copy_line(a, shape, frame / shape.seen, frame % shape.seen, row % shape.height, copy + row * shape.line);
    });
    if (a.cache != nullptr && shape.history > 0)
        each_row(pool, a.threads, a.batch * shape.history * shape.inner_h, shape.line, [&](int64_t row, int) {
            const int64_t y = row % shape.inner_h, frame = row / shape.inner_h;
            const int64_t b = frame / shape.history, t = frame % shape.history;
            const float *last = copy + b * shape.all + (shape.seen - shape.history + t) * shape.frame;
            renew_line(a, shape, b, t, y, last + (y + a.pad_top) * shape.line);
        });
    Product p = conv_product(a, source);
    if (reads_in_place(a, shape)) {
        const int64_t lines = a.batch * shape.out_t * shape.out_h;
        each_row(pool, a.threads, lines, shape.out_w * a.out_channels, [&](int64_t row, int) {
            convolve_line(source, p, row);
        });
        return;
    }
    p.workspace = static_cast<char *>(a.workspace) + aligned(a.batch * shape.all * 4);
    multiply(p, pool);
}

} // namespace KINEMA_ISA
} // namespace kinema
