// A causal convolution as a product that gathers its left matrix from a padded copy of the video, channels last.
//
// The copy is what the convolution sees: past frames, then x normed, activated and upsampled, with its border. So the
// gather is of runs of kernel_w · channels numbers, and the past for the next chunk is the copy's last frames.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kinema.h"
#include "pool.h"

namespace kinema {
namespace KINEMA_ISA {

struct ConvShape {
    int64_t history, seen, height, width;          // of the padded copy
    int64_t inner_h, inner_w;                      // without its border
    int64_t out_t, out_h, out_w, line, frame, all; // line, frame and sample of the copy, in floats

    explicit ConvShape(const kinema_conv3d_args &a) {
        history = most(a.kernel_t - a.stride_t, 0);
        seen = history + a.frames;
        inner_h = a.height * a.upsample;
        inner_w = a.width * a.upsample;
        height = inner_h + a.pad_top + a.pad_bottom;
        width = inner_w + a.pad_left + a.pad_right;
        out_t = (seen - a.kernel_t) / a.stride_t + 1;
        out_h = (height - a.kernel_h) / a.stride_h + 1;
        out_w = (width - a.kernel_w) / a.stride_w + 1;
        line = width * a.in_channels;
        frame = height * line;
        all = seen * frame;
    }
};

struct ConvSource {
    kinema_linear_args epilogue;
    const kinema_conv3d_args *a;
    ConvShape shape;
    const float *copy;
};

// A pixel of x [channels] in fp32 at `to`, normed and activated.
inline void see(const kinema_conv3d_args &a, const float *x, float *to) {
    const int64_t channels = a.in_channels;
    if (a.x_stride_c == 1)
        std::memcpy(to, x, channels * sizeof(float));
    else
        for (int64_t c = 0; c < channels; ++c)
            to[c] = x[c * a.x_stride_c];
    if (a.norm != nullptr) {
        const float length = std::sqrt(row_sum(to, channels, 0.0f, [](V v) { return mul(v, v); }));
        const float root = std::sqrt(static_cast<float>(channels)), gain = root / (length > 1e-12f ? length : 1e-12f);
        for (int64_t c = 0; c < channels; c += W) {
            const int lanes = static_cast<int>(least(channels - c, W));
            store_some(to + c, mul(mul(load_some(to + c, lanes), set1(gain)), load_some(a.norm + c, lanes)), lanes);
        }
    }
    if (a.activation != KINEMA_NONE)
        activate(a.activation, channels, to, to);
}

// f(pixel, channel, offset in the cache) over a line of the cache, in the order in which it lies there.
template <class F> inline void each_cached(const kinema_conv3d_args &a, const ConvShape &shape, F f) {
    if (a.cache_stride_c <= a.cache_stride_w)
        for (int64_t i = 0; i < shape.inner_w; ++i)
            for (int64_t c = 0; c < a.in_channels; ++c)
                f(i, c, i * a.cache_stride_w + c * a.cache_stride_c);
    else
        for (int64_t c = 0; c < a.in_channels; ++c)
            for (int64_t i = 0; i < shape.inner_w; ++i)
                f(i, c, i * a.cache_stride_w + c * a.cache_stride_c);
}

// A line of the copy: a border is zero, a past frame comes from the cache, the rest from x.
inline void copy_line(const kinema_conv3d_args &a, const ConvShape &shape, int64_t row, float *copy) {
    const int64_t y = row % shape.height, t = row / shape.height % shape.seen, b = row / (shape.height * shape.seen);
    const int64_t channels = a.in_channels, inside = y - a.pad_top;
    float *line = copy + row * shape.line;
    if (inside < 0 || inside >= shape.inner_h || (t < shape.history && a.cache == nullptr)) {
        std::memset(line, 0, shape.line * sizeof(float));
        return;
    }
    std::memset(line, 0, a.pad_left * channels * sizeof(float));
    float *pixel = line + a.pad_left * channels;
    if (t < shape.history) {
        const float *past = a.cache + b * a.cache_stride_b + t * a.cache_stride_t + inside * a.cache_stride_h;
        each_cached(a, shape, [&](int64_t i, int64_t c, int64_t at) { pixel[i * channels + c] = past[at]; });
        pixel += shape.inner_w * channels;
    } else {
        const float *x =
            a.x + b * a.x_stride_b + (t - shape.history) * a.x_stride_t + inside / a.upsample * a.x_stride_h;
        for (int64_t i = 0; i < a.width; ++i) {
            see(a, x + i * a.x_stride_w, pixel);
            pixel += channels;
            for (int64_t again = 1; again < a.upsample; ++again, pixel += channels)
                std::memcpy(pixel, pixel - channels, channels * sizeof(float));
        }
    }
    std::memset(pixel, 0, a.pad_right * channels * sizeof(float));
}

// A line of the copy's last frames goes back to the cache.
inline void renew_line(const kinema_conv3d_args &a, const ConvShape &shape, int64_t row, const float *copy) {
    const int64_t y = row % shape.inner_h, t = row / shape.inner_h % shape.history;
    const int64_t b = row / (shape.inner_h * shape.history), channels = a.in_channels;
    const float *line = copy + b * shape.all + (shape.seen - shape.history + t) * shape.frame +
                        (y + a.pad_top) * shape.line + a.pad_left * channels;
    float *past = a.cache + b * a.cache_stride_b + t * a.cache_stride_t + y * a.cache_stride_h;
    each_cached(a, shape, [&](int64_t i, int64_t c, int64_t at) { past[at] = line[i * channels + c]; });
}

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
    ConvSource source{{}, &a, ConvShape(a), nullptr};
    return aligned(a.batch * source.shape.all * 4) + product_workspace(conv_product(a, source));
}

inline void conv3d(const kinema_conv3d_args &a, Pool &pool) {
    float *copy = static_cast<float *>(a.workspace);
    ConvSource source{{}, &a, ConvShape(a), copy};
    const ConvShape &shape = source.shape;
    each_row(pool, a.threads, a.batch * shape.seen * shape.height, shape.line, [&](int64_t row, int) {
        copy_line(a, shape, row, copy);
    });
    if (a.cache != nullptr && shape.history > 0)
        each_row(pool, a.threads, a.batch * shape.history * shape.inner_h, shape.line, [&](int64_t row, int) {
            renew_line(a, shape, row, copy);
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
