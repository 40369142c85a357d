// The checks of all ops but attention. For each: the scalars, the early success, then arrays and strides.
#include "checks.h"

#include "arrays.h"

namespace kinema {

namespace {

constexpr int64_t MAX_TAPS = 1024; // of a kernel along one axis, and of its strides and upsampling
// Features whose products of a code and an int8 weight cannot overflow 32 bits: 2^31 / (255 * 128).
constexpr int64_t MAX_QUANTIZED_FEATURES = 65793;
// The same for the column sums packed with an int8 weight: 2^31 / 128, minus one.
constexpr int64_t MAX_SUMMED_FEATURES = (1 << 24) - 1;

bool is_activation(int32_t activation) { return activation >= KINEMA_NONE && activation <= KINEMA_SILU; }
bool is_norm(int32_t kind) { return kind >= KINEMA_NO_NORM && kind <= KINEMA_LAYER_NORM; }
bool is_weight_dtype(int32_t dtype) { return dtype >= KINEMA_F32 && dtype <= KINEMA_I8; }
bool is_out_dtype(int32_t dtype) { return dtype == KINEMA_F32 || dtype == KINEMA_E4M3 || dtype == KINEMA_I8; }

bool are_taps(std::initializer_list<int64_t> counts) {
    return std::all_of(counts.begin(), counts.end(), [](int64_t count) { return count >= 1 && count <= MAX_TAPS; });
}

// Rows of a modulation, [batch, groups, channels]; null: none.
bool is_modulation(
    const float *rows, int64_t stride_b, int64_t stride_g, int64_t group, int64_t batch, int64_t tokens,
    int64_t channels) {
    return rows == nullptr ||
           (group >= 1 && is_array({{batch, stride_b}, {(tokens - 1) / group + 1, stride_g}, {channels, 1}}));
}

int32_t check_norm(const kinema_norm &n, int64_t batch, int64_t tokens, int64_t channels) {
    if (!is_modulation(n.scale, n.scale_stride_b, n.scale_stride_g, n.scale_tokens, batch, tokens, channels) ||
        !is_modulation(n.shift, n.shift_stride_b, n.shift_stride_g, n.shift_tokens, batch, tokens, channels))
        return KINEMA_BAD_SIZE;
    return KINEMA_OK;
}

int32_t check_norm_pointers(const kinema_norm &n) {
    return check_pointers(4, {}, {n.weight, n.bias, n.scale, n.shift});
}

} // namespace

int32_t check_control(const kinema_control *control) {
    if (control == nullptr)
        return KINEMA_OK;
    int32_t status = check_pointers(alignof(kinema_control), {control});
    if (status == KINEMA_OK && (!are_sizes({control->flag_count, control->interval_ms})))
        status = KINEMA_BAD_SIZE;
    if (status == KINEMA_OK && control->flag_count > 0)
        status = check_pointers(alignof(int32_t *), {control->flags});
    for (int64_t i = 0; status == KINEMA_OK && i < control->flag_count; ++i)
        status = check_pointers(4, {control->flags[i]});
    return status;
}

// ---- linear

int32_t check_linear_weight(int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated) {
    if (!is_weight_dtype(dtype))
        return KINEMA_BAD_DTYPE;
    if (!are_flags({gated}))
        return KINEMA_BAD_OPTION;
    if (!are_sizes({in_features, out_features}) || in_features == 0 ||
        !within_max_elements({in_features, 2, out_features}) ||
        (dtype == KINEMA_I8 && in_features > MAX_SUMMED_FEATURES))
        return KINEMA_BAD_SIZE;
    return out_features == 0 ? NOTHING_TO_DO : KINEMA_OK;
}

int32_t check_packing(const void *rows, int32_t dtype, const void *packed) {
    const int64_t item_size = dtype == KINEMA_F32 ? 4 : dtype == KINEMA_BF16 || dtype == KINEMA_F16 ? 2 : 1;
    return first_error({check_pointers(item_size, {rows}), check_pointers(CACHE_LINE, {packed})});
}

int32_t check_sizes(const kinema_linear_args &a) {
    if (check_pointers(alignof(kinema_norm), {}, {a.norm}) != KINEMA_OK)
        return KINEMA_MISALIGNED;
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.tokens, a.x_features}) || a.x_features > a.in_features ||
        check_linear_weight(a.in_features, a.out_features, KINEMA_F32, 0) == KINEMA_BAD_SIZE)
        return KINEMA_BAD_SIZE;
    if (!is_out_dtype(a.x_dtype) || !is_weight_dtype(a.weight_dtype))
        return KINEMA_BAD_DTYPE;
    if (a.x_dtype != KINEMA_F32 && (a.x2 != nullptr || a.quantize != 0 || a.norm != nullptr))
        return KINEMA_BAD_DTYPE;
    if (a.quantize != 0 && (a.weight_dtype == KINEMA_F32 || a.weight_dtype == KINEMA_F16))
        return KINEMA_BAD_DTYPE;
    if (a.weight_dtype == KINEMA_I8 && a.in_features > MAX_QUANTIZED_FEATURES)
        return KINEMA_BAD_SIZE;
    if (!is_activation(a.activation) || !are_flags({a.gated, a.quantize}) || (a.norm != nullptr && a.x2 != nullptr) ||
        (a.norm != nullptr && !is_norm(a.norm->kind)))
        return KINEMA_BAD_OPTION;
    if (any_zero({a.batch, a.tokens, a.out_features}))
        return NOTHING_TO_DO;
    const Axis features{a.out_features, 1};
    if ((a.x2 == nullptr && a.x_features < a.in_features) ||
        !is_array({{a.batch, a.x_stride_b}, {a.tokens, a.x_stride_s}, {a.x_features, 1}}) ||
        !is_array_or_null(
            a.x2, {{a.batch, a.x2_stride_b}, {a.tokens, a.x2_stride_s}, {a.in_features - a.x_features, 1}}) ||
        !is_array_or_null(a.residual, {{a.batch, a.residual_stride_b}, {a.tokens, a.residual_stride_s}, features}) ||
        !is_non_overlapping({{a.batch, a.out_stride_b}, {a.tokens, a.out_stride_s}, features}) ||
        !is_modulation(a.gate, a.gate_stride_b, a.gate_stride_g, a.gate_tokens, a.batch, a.tokens, a.out_features))
        return KINEMA_BAD_SIZE;
    return a.norm != nullptr ? check_norm(*a.norm, a.batch, a.tokens, a.in_features) : KINEMA_OK;
}

int32_t check_memory(const kinema_linear_args &a) {
    const bool reads_x = a.x_features > 0;
    return first_error(
        {reads_x ? check_pointers(a.x_dtype == KINEMA_F32 ? 4 : 1, {a.x}) : KINEMA_OK,
         check_pointers(4, {a.out}, {a.x2, a.x_scale, a.weight_scale, a.bias, a.gate, a.residual}),
         check_pointers(CACHE_LINE, {a.weight, a.workspace}),
         a.norm != nullptr ? check_norm_pointers(*a.norm) : KINEMA_OK});
}

// ---- rows

int32_t check_sizes(const kinema_norm_modulate_args &a) {
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.tokens, a.channels}) ||
        !within_max_elements({a.batch, a.tokens, a.channels}))
        return KINEMA_BAD_SIZE;
    if (!is_out_dtype(a.out_dtype))
        return KINEMA_BAD_DTYPE;
    if (!is_norm(a.norm.kind))
        return KINEMA_BAD_OPTION;
    if (any_zero({a.batch, a.tokens, a.channels}))
        return NOTHING_TO_DO;
    const Axis channels{a.channels, 1};
    if (!is_array({{a.batch, a.x_stride_b}, {a.tokens, a.x_stride_s}, channels}) ||
        (a.out_dtype == KINEMA_F32 &&
         !is_non_overlapping({{a.batch, a.out_stride_b}, {a.tokens, a.out_stride_s}, channels})))
        return KINEMA_BAD_SIZE;
    return check_norm(a.norm, a.batch, a.tokens, a.channels);
}

int32_t check_memory(const kinema_norm_modulate_args &a) {
    const bool quantized = a.out_dtype != KINEMA_F32;
    return first_error(
        {check_pointers(4, {a.x}), check_pointers(quantized ? 1 : 4, {a.out}), check_norm_pointers(a.norm),
         quantized ? check_pointers(4, {a.out_scale}) : KINEMA_OK,
         quantized ? check_pointers(CACHE_LINE, {a.workspace}) : KINEMA_OK});
}

int32_t check_sizes(const kinema_qk_norm_rope_args &a) {
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.tokens, a.heads, a.head_dim}) ||
        !within_max_elements({a.batch, a.tokens, a.heads, a.head_dim}))
        return KINEMA_BAD_SIZE;
    if (a.out_dtype != KINEMA_F32 && a.out_dtype != KINEMA_BF16)
        return KINEMA_BAD_DTYPE;
    if (!is_norm(a.norm) || !are_flags({a.across_heads, a.interleaved}))
        return KINEMA_BAD_OPTION;
    if (a.operands < 1 || a.heads % a.operands != 0)
        return KINEMA_BAD_SIZE;
    if (any_zero({a.batch, a.tokens, a.heads, a.head_dim}))
        return NOTHING_TO_DO;
    if (!is_array({{a.batch, a.x_stride_b}, {a.tokens, a.x_stride_s}, {a.heads * a.head_dim, 1}}) ||
        !is_non_overlapping({{a.batch, a.out_stride_b}, {a.heads, a.out_stride_n}, {a.tokens * a.head_dim, 1}}) ||
        (a.cosines != nullptr &&
         !is_rotation(a.batch, a.tokens, a.head_dim, a.rope_stride_b, a.rope_start, a.rope_tokens)))
        return KINEMA_BAD_SIZE;
    return KINEMA_OK;
}

int32_t check_memory(const kinema_qk_norm_rope_args &a) {
    if ((a.cosines == nullptr) != (a.sines == nullptr))
        return KINEMA_NO_POINTER;
    const bool rounds = a.out_dtype != KINEMA_F32;
    return first_error(
        {check_pointers(4, {a.x}, {a.weight, a.bias, a.cosines, a.sines}), check_pointers(rounds ? 2 : 4, {a.out}),
         rounds ? check_pointers(CACHE_LINE, {a.workspace}) : KINEMA_OK});
}

// ---- scheduler_step

int32_t check_sizes(const kinema_scheduler_step_args &a) {
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.term_count, a.out_count}) || a.elements < 0 ||
        !within_max_elements({a.batch, a.elements, a.out_count}) ||
        !within_max_elements({a.batch, a.out_count, a.term_count}))
        return KINEMA_BAD_SIZE;
    return any_zero({a.batch, a.elements, a.out_count}) ? NOTHING_TO_DO : KINEMA_OK;
}

int32_t check_memory(const kinema_scheduler_step_args &a) {
    const int32_t tables = check_pointers(alignof(float *), {a.outs, a.out_strides}, {a.terms, a.term_strides});
    if (tables != KINEMA_OK)
        return tables;
    if (a.term_count > 0 && (a.terms == nullptr || a.term_strides == nullptr || a.coefficients == nullptr))
        return KINEMA_NO_POINTER;
    int32_t status = first_error({check_pointers(4, {}, {a.coefficients}), check_pointers(CACHE_LINE, {a.workspace})});
    for (int64_t k = 0; status == KINEMA_OK && k < a.term_count; ++k)
        status = is_array({{a.batch, a.term_strides[k]}, {a.elements, 1}}) ? check_pointers(4, {a.terms[k]})
                                                                           : KINEMA_BAD_SIZE;
    for (int64_t m = 0; status == KINEMA_OK && m < a.out_count; ++m)
        status = is_non_overlapping({{a.batch, a.out_strides[m]}, {a.elements, 1}}) ? check_pointers(4, {a.outs[m]})
                                                                                    : KINEMA_BAD_SIZE;
    return status;
}

// ---- patches

int32_t check_sizes(const kinema_patch_embed_args &a) {
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.channels, a.frames, a.height, a.width, a.features}) ||
        !are_sizes({a.patch_t, a.patch_h, a.patch_w}) || any_zero({a.channels, a.patch_t, a.patch_h, a.patch_w}) ||
        a.frames % a.patch_t != 0 || a.height % a.patch_h != 0 || a.width % a.patch_w != 0)
        return KINEMA_BAD_SIZE;
    if (!within_max_elements({a.batch, a.channels, a.frames, a.height, a.width}) ||
        !within_max_elements({a.channels, a.patch_t, a.patch_h, a.patch_w}))
        return KINEMA_BAD_SIZE;
    const int64_t elements = a.channels * a.patch_t * a.patch_h * a.patch_w;
    if (check_linear_weight(elements, a.features, KINEMA_F32, 0) == KINEMA_BAD_SIZE)
        return KINEMA_BAD_SIZE;
    if (any_zero({a.batch, a.frames, a.height, a.width, a.features}))
        return NOTHING_TO_DO;
    const int64_t tokens = a.frames / a.patch_t * (a.height / a.patch_h) * (a.width / a.patch_w);
    const Axis features{a.features, 1};
    if (!is_array(
            {{a.batch, a.x_stride_b},
             {a.channels, a.x_stride_c},
             {a.frames, a.x_stride_t},
             {a.height, a.x_stride_h},
             {a.width, a.x_stride_w}}) ||
        !is_array_or_null(a.position, {{a.batch, a.position_stride_b}, {tokens, a.position_stride_s}, features}) ||
        !is_non_overlapping({{a.batch, a.out_stride_b}, {tokens, a.out_stride_s}, features}))
        return KINEMA_BAD_SIZE;
    return KINEMA_OK;
}

int32_t check_memory(const kinema_patch_embed_args &a) {
    return first_error(
        {check_pointers(4, {a.x, a.out}, {a.bias, a.position}), check_pointers(CACHE_LINE, {a.weight, a.workspace})});
}

int32_t check_sizes(const kinema_unpatchify_args &a) {
    if (!is_thread_count(a.threads) || !are_sizes({a.batch, a.channels, a.grid_t, a.grid_h, a.grid_w}) ||
        !are_sizes({a.patch_t, a.patch_h, a.patch_w}) || any_zero({a.patch_t, a.patch_h, a.patch_w}) ||
        !within_max_elements({a.batch, a.channels, a.grid_t, a.grid_h, a.grid_w, a.patch_t, a.patch_h, a.patch_w}))
        return KINEMA_BAD_SIZE;
    if (!are_flags({a.channel_first}))
        return KINEMA_BAD_OPTION;
    if (any_zero({a.batch, a.channels, a.grid_t, a.grid_h, a.grid_w}))
        return NOTHING_TO_DO;
    const int64_t tokens = a.grid_t * a.grid_h * a.grid_w, features = a.channels * a.patch_t * a.patch_h * a.patch_w;
    return is_array({{a.batch, a.x_stride_b}, {tokens, a.x_stride_s}, {features, 1}}) ? KINEMA_OK : KINEMA_BAD_SIZE;
}

int32_t check_memory(const kinema_unpatchify_args &a) { return check_pointers(4, {a.x, a.out}); }

// ---- conv3d

int32_t check_winograd_weight(int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile) {
    if (tile != 2 && tile != 4)
        return KINEMA_BAD_OPTION;
    if (!are_sizes({in_channels, out_channels, kernel_t}) || any_zero({in_channels, kernel_t}) || kernel_t > MAX_TAPS ||
        !within_max_elements({64, kernel_t, in_channels, out_channels}))
        return KINEMA_BAD_SIZE;
    return out_channels == 0 ? NOTHING_TO_DO : KINEMA_OK;
}

int32_t check_sizes(const kinema_conv3d_args &a) {
    if (!is_thread_count(a.threads) ||
        !are_sizes({a.batch, a.in_channels, a.out_channels, a.frames, a.height, a.width}) ||
        any_zero({a.in_channels, a.out_channels, a.height, a.width}) ||
        !are_sizes({a.pad_top, a.pad_bottom, a.pad_left, a.pad_right}) ||
        !are_taps({a.kernel_t, a.kernel_h, a.kernel_w, a.stride_t, a.stride_h, a.stride_w, a.upsample}))
        return KINEMA_BAD_SIZE;
    if (a.winograd != 0 && a.winograd != 2 && a.winograd != 4)
        return KINEMA_BAD_OPTION;
    if (!is_activation(a.activation))
        return KINEMA_BAD_OPTION;
    if (a.winograd != 0 &&
        (a.kernel_h != 3 || a.kernel_w != 3 || a.stride_t != 1 || a.stride_h != 1 || a.stride_w != 1))
        return KINEMA_BAD_SIZE;
    if (any_zero({a.batch, a.frames})) // without new frames the cache stays as it is
        return NOTHING_TO_DO;
    const int64_t past = a.kernel_t > a.stride_t ? a.kernel_t - a.stride_t : 0, in_frames = past + a.frames;
    const int64_t inner_h = a.height * a.upsample, height = inner_h + a.pad_top + a.pad_bottom;
    const int64_t inner_w = a.width * a.upsample, width = inner_w + a.pad_left + a.pad_right;
    if (in_frames < a.kernel_t || height < a.kernel_h || width < a.kernel_w ||
        !within_max_elements({64, a.kernel_t, a.kernel_h, a.kernel_w, a.in_channels, a.out_channels}) ||
        !within_max_elements({a.batch, in_frames, height, width, a.in_channels}) ||
        !within_max_elements({a.batch, in_frames, height, width, a.out_channels}))
        return KINEMA_BAD_SIZE;
    if (!is_array(
            {{a.batch, a.x_stride_b},
             {a.in_channels, a.x_stride_c},
             {a.frames, a.x_stride_t},
             {a.height, a.x_stride_h},
             {a.width, a.x_stride_w}}))
        return KINEMA_BAD_SIZE;
    if (a.cache != nullptr && !is_non_overlapping(
                                  {{a.batch, a.cache_stride_b},
                                   {a.in_channels, a.cache_stride_c},
                                   {past, a.cache_stride_t},
                                   {inner_h, a.cache_stride_h},
                                   {inner_w, a.cache_stride_w}}))
        return KINEMA_BAD_SIZE;
    return KINEMA_OK;
}

int32_t check_memory(const kinema_conv3d_args &a) {
    return first_error(
        {check_pointers(4, {a.x, a.out}, {a.norm, a.cache, a.bias, a.residual}),
         check_pointers(CACHE_LINE, {a.weight, a.workspace})});
}

} // namespace kinema
