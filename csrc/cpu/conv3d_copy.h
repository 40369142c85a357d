// The input of a convolution, channels last: past frames, then x normalised, activated and upsampled, with padding.
//
// It is written line by line and then read many times. Its last frames are the past of the next chunk. A frame is
// processed in bands of lines, so that nothing of the video's size is written but the result.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

struct ConvShape {
    int64_t history, in_frames, height, width; // of the padded input
    int64_t inner_h, inner_w;                  // without padding
    int64_t out_t, out_h, out_w, line;         // line: floats per padded line

    explicit ConvShape(const kinema_conv3d_args &a) {
        history = max(a.kernel_t - a.stride_t, 0);
        in_frames = history + a.frames;
        inner_h = a.height * a.upsample;
        inner_w = a.width * a.upsample;
        height = inner_h + a.pad_top + a.pad_bottom;
        width = inner_w + a.pad_left + a.pad_right;
        out_t = (in_frames - a.kernel_t) / a.stride_t + 1;
        out_h = (height - a.kernel_h) / a.stride_h + 1;
        out_w = (width - a.kernel_w) / a.stride_w + 1;
        line = width * a.in_channels;
    }
};

// Copies `count` pixels of x to contiguous memory.
inline void gather(const kinema_conv3d_args &a, const float *x, int64_t count, float *to) {
    if (a.x_stride_c == 1 && a.x_stride_w == a.in_channels) {
        std::memcpy(to, x, count * a.in_channels * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < count; ++i, x += a.x_stride_w)
        for (int64_t c = 0; c < a.in_channels; ++c)
            *to++ = x[c * a.x_stride_c];
}

// The RMS-norm gains of up to W pixels: √channels / ‖pixel‖. One square root and one division for all of them.
inline void norm_gains(const float *pixels, int64_t channels, int64_t count, float *gains) {
    V squares[W];
    for (int64_t i = 0; i < W; ++i)
        squares[i] =
            i < count ? lane_sums(pixels + i * channels, channels, 0.0f, [](V v) { return mul(v, v); }) : set1(0.0f);
    const V length = vmax(vsqrt(reduce_add_each(squares)), set1(1e-12f));
    store(gains, div(set1(std::sqrt(static_cast<float>(channels))), length));
}

// Writes `count` pixels of x contiguously, normalised, activated and upsampled along the line. next: the pixels needed
// next, which are prefetched; may be null.
inline void prepare_pixels(const kinema_conv3d_args &a, const float *x, int64_t count, float *to, const float *next) {
    const int64_t channels = a.in_channels;
    const bool dense = a.x_stride_c == 1 && a.x_stride_w == channels;
    if (!dense || a.norm == nullptr)
        gather(a, x, count, to);
    if (a.norm != nullptr) {
        const float *from = dense ? x : to;
        float gains[W] = {};
        for (int64_t i = 0; i < count; ++i, from += channels) {
            if (dense && next != nullptr)
                for (int64_t c = 0; c < channels; c += 16) // a cache line
                    __builtin_prefetch(next + i * channels + c, 0, 2);
            if (i % W == 0)
                norm_gains(from, channels, min(count - i, W), gains);
            const V gain = set1(gains[i % W]);
            for (int64_t c = 0; c < channels; c += W) {
                const int lanes = static_cast<int>(min(channels - c, W));
                const V y = mul(load_lanes(from + c, lanes), gain);
                store_lanes(to + i * channels + c, mul(y, load_lanes(a.norm + c, lanes)), lanes);
            }
        }
    }
    if (a.activation != KINEMA_NONE)
        activate(a.activation, count * channels, to, to);
    if (a.upsample > 1)
        for (int64_t i = count * a.upsample - 1; i > 0; --i) // backwards: reads precede writes
            std::memmove(to + i * channels, to + i / a.upsample * channels, channels * sizeof(float));
}

// Whether cached lines have the layout of the copy.
inline bool cache_is_dense(const kinema_conv3d_args &a) {
    return (a.cache_stride_c == 1 || a.in_channels == 1) && a.cache_stride_w == a.in_channels;
}

// f(pixel, channel, offset in the cache) over a line of the cache, in memory order.
template <class F> inline void for_each_cached(const kinema_conv3d_args &a, const ConvShape &shape, F f) {
    if (a.cache_stride_c <= a.cache_stride_w)
        for (int64_t i = 0; i < shape.inner_w; ++i)
            for (int64_t c = 0; c < a.in_channels; ++c)
                f(i, c, i * a.cache_stride_w + c * a.cache_stride_c);
    else
        for (int64_t c = 0; c < a.in_channels; ++c)
            for (int64_t i = 0; i < shape.inner_w; ++i)
                f(i, c, i * a.cache_stride_w + c * a.cache_stride_c);
}

// Writes line y of a frame: padding is zero, past frames come from the cache, others from x.
inline void
copy_line(const kinema_conv3d_args &a, const ConvShape &shape, int64_t b, int64_t t, int64_t y, float *line) {
    const int64_t channels = a.in_channels, inside = y - a.pad_top;
    if (inside < 0 || inside >= shape.inner_h || (t < shape.history && a.cache == nullptr)) {
        std::memset(line, 0, shape.line * sizeof(float));
        return;
    }
    std::memset(line, 0, a.pad_left * channels * sizeof(float));
    float *pixel = line + a.pad_left * channels;
    if (t < shape.history) {
        const float *past = a.cache + b * a.cache_stride_b + t * a.cache_stride_t + inside * a.cache_stride_h;
        if (cache_is_dense(a))
            std::memcpy(pixel, past, shape.inner_w * channels * sizeof(float));
        else
            for_each_cached(a, shape, [&](int64_t i, int64_t c, int64_t at) { pixel[i * channels + c] = past[at]; });
    } else {
        const float *x =
            a.x + b * a.x_stride_b + (t - shape.history) * a.x_stride_t + inside / a.upsample * a.x_stride_h;
        prepare_pixels(a, x, a.width, pixel, t + 1 < shape.in_frames ? x + a.x_stride_t : nullptr);
    }
    pixel += shape.inner_w * channels;
    std::memset(pixel, 0, a.pad_right * channels * sizeof(float));
}

// Copies line y of a frame to frame t of the cache.
inline void
update_cache(const kinema_conv3d_args &a, const ConvShape &shape, int64_t b, int64_t t, int64_t y, const float *line) {
    const int64_t channels = a.in_channels;
    const float *pixel = line + a.pad_left * channels;
    float *past = a.cache + b * a.cache_stride_b + t * a.cache_stride_t + y * a.cache_stride_h;
    if (cache_is_dense(a))
        std::memcpy(past, pixel, shape.inner_w * channels * sizeof(float));
    else
        for_each_cached(a, shape, [&](int64_t i, int64_t c, int64_t at) { past[at] = pixel[i * channels + c]; });
}

inline bool any_nonzero(const float *x, int64_t count) {
    int found = 0;
    for (int64_t i = 0; i < count; ++i)
        found |= x[i] != 0.0f; // branchless, so that compilers vectorise it
    return found != 0;
}

constexpr int64_t BAND_BYTES = 2ll << 20; // of lines at a time: with their results they fit the last-level cache

// The lines of a sample in a ring buffer of `ring_lines`: the next band finds those that both read.
struct LineBuffer {
    const kinema_conv3d_args &a;
    const ConvShape &shape;
    int64_t ring_lines;
    float *lines;
    uint8_t *nonzero; // flag per past line: has it any non-zero value?

    LineBuffer(const kinema_conv3d_args &args, const ConvShape &of, int64_t count, char *memory)
        : a(args), shape(of), ring_lines(count), lines(reinterpret_cast<float *>(memory)),
          nonzero(reinterpret_cast<uint8_t *>(memory + lines_bytes(of, count))) {}

    static int64_t lines_bytes(const ConvShape &shape, int64_t count) {
        return aligned(count * shape.in_frames * shape.line * 4);
    }
    static int64_t bytes(const ConvShape &shape, int64_t count) {
        return lines_bytes(shape, count) + aligned(shape.history * count);
    }

    float *line(int64_t t, int64_t y) const { return lines + (t * ring_lines + y % ring_lines) * shape.line; }

    // Fills lines `from` to `end` of all frames; the last frames update the cache, whose line y nothing else reads.
    // filled(t, y) is called after each line, while it is still in L1.
    template <class F> void fill(int64_t b, int64_t from, int64_t end, Call &call, const F &filled) const {
        parallel_for_rows(call, a.threads, end - from, shape.in_frames * shape.line, [&](int64_t row, int) {
            const int64_t y = from + row, inside = y - a.pad_top;
            for (int64_t t = 0; t < shape.in_frames; ++t) {
                copy_line(a, shape, b, t, y, line(t, y));
                if (t < shape.history)
                    nonzero[t * ring_lines + y % ring_lines] =
                        a.cache != nullptr && any_nonzero(line(t, y), shape.line);
                filled(t, y);
            }
            if (a.cache != nullptr && inside >= 0 && inside < shape.inner_h)
                for (int64_t t = 0; t < shape.history; ++t)
                    update_cache(a, shape, b, t, inside, line(shape.in_frames - shape.history + t, y));
        });
    }
    void fill(int64_t b, int64_t from, int64_t end, Call &call) const {
        fill(b, from, end, call, [](int64_t, int64_t) {});
    }

    // Number of leading all-zero frames in lines `from` to `end`; their contribution is skipped.
    int64_t leading_zero_frames(int64_t from, int64_t end) const {
        for (int64_t t = 0; t < shape.history; ++t)
            for (int64_t y = from; y < end; ++y)
                if (nonzero[t * ring_lines + y % ring_lines] != 0)
                    return t;
        return shape.history;
    }
};

} // namespace KINEMA_ISA
} // namespace kinema
