// Patches of a latent video to tokens, as a GEMM with a gathered left matrix; and tokens back to a video.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "call.h"
#include "kinema.h"

namespace kinema {
namespace KINEMA_ISA {

// A GEMM whose rows are gathered; linear's epilogue finds its arguments at the address of the source.
struct PatchSource {
    kinema_linear_args epilogue_args;
    const kinema_patch_embed_args *a;
    const int64_t *offsets; // of a patch's elements, relative to its first
};
static_assert(std::is_standard_layout_v<PatchSource> && offsetof(PatchSource, epilogue_args) == 0);

inline int64_t patch_elements(const kinema_patch_embed_args &a) {
    return a.channels * a.patch_t * a.patch_h * a.patch_w;
}

inline void
pack_patches(const void *source, int64_t m, int count, int64_t k, int64_t depth, const RowScale *, void *to) {
    const PatchSource &patches = *static_cast<const PatchSource *>(source);
    const kinema_patch_embed_args &a = *patches.a;
    const int64_t columns = a.width / a.patch_w, rows = a.height / a.patch_h;
    float gathered[F32_DEPTH];
    for (int r = 0; r < count; ++r) {
        const int64_t b = (m + r) / patches.epilogue_args.tokens, s = (m + r) % patches.epilogue_args.tokens;
        const float *x = a.x + b * a.x_stride_b + s / (rows * columns) * a.patch_t * a.x_stride_t +
                         s / columns % rows * a.patch_h * a.x_stride_h + s % columns * a.patch_w * a.x_stride_w;
        for (int64_t i = 0; i < depth; ++i)
            gathered[i] = x[patches.offsets[k + i]];
        pack_row(static_cast<float *>(to), r, 0, gathered, depth);
    }
}

inline GemmProblem patch_gemm(const kinema_patch_embed_args &a, PatchSource &source) {
    const int64_t tokens = a.frames / a.patch_t * (a.height / a.patch_h) * (a.width / a.patch_w);
    kinema_linear_args &e = source.epilogue_args;
    e = kinema_linear_args{};
    e.batch = a.batch;
    e.tokens = tokens;
    e.out_features = a.features;
    e.bias = a.bias;
    e.residual = a.position;
    e.residual_stride_b = a.position_stride_b;
    e.residual_stride_s = a.position_stride_s;
    e.out = a.out;
    e.out_stride_b = a.out_stride_b;
    e.out_stride_s = a.out_stride_s;
    source.a = &a;
    GemmProblem p{};
    p.rows = a.batch * tokens;
    p.columns = a.features;
    p.depth = patch_elements(a);
    p.weight = a.weight;
    p.dtype = KINEMA_F32;
    p.threads = a.threads > 1 ? a.threads : 1;
    p.pack = pack_patches;
    p.prepare = load_scales;
    p.prefetch = prefetch_results;
    p.finish = finish<float>;
    p.source = &source;
    return p;
}

inline int64_t patch_embed_workspace(const kinema_patch_embed_args &a) {
    PatchSource source;
    return aligned(patch_elements(a) * 8) + gemm_workspace(patch_gemm(a, source));
}

inline void patch_embed(const kinema_patch_embed_args &a, Call &call) {
    PatchSource source;
    GemmProblem p = patch_gemm(a, source);
    int64_t *offsets = static_cast<int64_t *>(a.workspace), k = 0;
    for (int64_t c = 0; c < a.channels; ++c)
        for (int64_t t = 0; t < a.patch_t; ++t)
            for (int64_t h = 0; h < a.patch_h; ++h)
                for (int64_t w = 0; w < a.patch_w; ++w)
                    offsets[k++] = c * a.x_stride_c + t * a.x_stride_t + h * a.x_stride_h + w * a.x_stride_w;
    source.offsets = offsets;
    p.workspace = static_cast<char *>(a.workspace) + aligned(patch_elements(a) * 8);
    multiply(p, call);
}

inline void unpatchify(const kinema_unpatchify_args &a, Call &call) {
    const int64_t frames = a.grid_t * a.patch_t, height = a.grid_h * a.patch_h, width = a.grid_w * a.patch_w;
    const int64_t inside = a.patch_t * a.patch_h * a.patch_w;
    // each row is one line of the video
    parallel_for_rows(call, a.threads, a.batch * a.channels * frames * height, width, [&](int64_t row, int) {
        const int64_t y = row % height, t = row / height % frames, c = row / (height * frames) % a.channels;
        const int64_t b = row / (height * frames * a.channels);
        const int64_t token = (t / a.patch_t * a.grid_h + y / a.patch_h) * a.grid_w;
        const int64_t first = (t % a.patch_t * a.patch_h + y % a.patch_h) * a.patch_w;
        const int64_t feature = a.channel_first ? c * inside + first : first * a.channels + c;
        const int64_t step = a.channel_first ? 1 : a.channels;
        const float *x = a.x + b * a.x_stride_b + token * a.x_stride_s + feature;
        float *out = a.out + row * width;
        for (int64_t w = 0; w < a.grid_w; ++w, x += a.x_stride_s)
            for (int64_t i = 0; i < a.patch_w; ++i)
                *out++ = x[i * step];
    });
}

} // namespace KINEMA_ISA
} // namespace kinema
