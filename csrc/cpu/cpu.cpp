// The C interface: which table runs, and what is refused before it does.
#include "table.h"

#include <cstring>
#include <new>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace kinema {

namespace {

#if defined(__x86_64__) || defined(__i386__)
// What the processor has counts only if the operating system saves its registers.
uint64_t saved_registers() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

[[maybe_unused]] bool has_avx2() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return false;
    const uint32_t wanted = (1u << 12) | (1u << 27) | (1u << 28) | (1u << 29); // FMA, OSXSAVE, AVX, F16C
    if ((c & wanted) != wanted || (saved_registers() & 0x6) != 0x6)
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5)) != 0;
}

[[maybe_unused]] bool has_avx512() {
    uint32_t a, b, c, d;
    if (!has_avx2() || (saved_registers() & 0xe6) != 0xe6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    const uint32_t wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); // F, DQ, BW, VL
    return (b & wanted) == wanted;
}

[[maybe_unused]] bool has_avx512vnni() {
    uint32_t a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & (1u << 11)) != 0;
}

[[maybe_unused]] bool has_avx512bf16() {
    uint32_t a, b, c, d;
    return has_avx512vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5)) != 0;
}
#endif

bool always() { return true; }

struct Known {
    const Table *table;
    bool (*has)();
};

const Known KNOWN[] = {
#if defined(KINEMA_WITH_AVX512BF16)
    {&avx512bf16_table, has_avx512bf16},
#endif
#if defined(KINEMA_WITH_AVX512VNNI)
    {&avx512vnni_table, has_avx512vnni},
#endif
#if defined(KINEMA_WITH_AVX512)
    {&avx512_table, has_avx512},
#endif
#if defined(KINEMA_WITH_AVX2)
    {&avx2_table, has_avx2},
#endif
    {&portable_table, always},
};
constexpr int32_t COUNT = sizeof KNOWN / sizeof KNOWN[0];

// Features whose products of a code and an int8 weight are sure to add up in 32 bits: 2^31 / (255 * 128).
constexpr int64_t MOST_CODES = 65793;

int32_t check(const kinema_norm &norm) {
    if ((norm.scale != nullptr && norm.scale_tokens <= 0) || (norm.shift != nullptr && norm.shift_tokens <= 0))
        return KINEMA_BAD_SIZE;
    return norm.kind >= KINEMA_NO_NORM && norm.kind <= KINEMA_LAYER_NORM ? KINEMA_OK : KINEMA_BAD_OPTION;
}

int32_t check(const kinema_linear_args *a) {
    if (a == nullptr || a->x == nullptr || a->weight == nullptr || a->out == nullptr)
        return KINEMA_NO_POINTER;
    if (a->batch < 0 || a->tokens < 0 || a->in_features <= 0 || a->out_features <= 0)
        return KINEMA_BAD_SIZE;
    if (a->x2 == nullptr ? a->x_features != a->in_features : a->x_features < 0 || a->x_features > a->in_features)
        return KINEMA_BAD_SIZE;
    if (a->gate != nullptr && a->gate_tokens <= 0)
        return KINEMA_BAD_SIZE;
    if (a->x_dtype != KINEMA_F32 && a->x_dtype != KINEMA_E4M3 && a->x_dtype != KINEMA_I8)
        return KINEMA_BAD_DTYPE;
    if (a->x_dtype != KINEMA_F32 && (a->x2 != nullptr || a->quantize != 0 || a->norm != nullptr))
        return KINEMA_BAD_DTYPE;
    if (a->weight_dtype < KINEMA_F32 || a->weight_dtype > KINEMA_I8)
        return KINEMA_BAD_DTYPE;
    if (a->quantize != 0 && (a->weight_dtype == KINEMA_F32 || a->weight_dtype == KINEMA_F16))
        return KINEMA_BAD_DTYPE;
    if (a->weight_dtype == KINEMA_I8 && a->in_features > MOST_CODES)
        return KINEMA_BAD_SIZE;
    if (a->activation < KINEMA_NONE || a->activation > KINEMA_SILU || (a->norm != nullptr && a->x2 != nullptr))
        return KINEMA_BAD_OPTION;
    return a->norm != nullptr ? check(*a->norm) : KINEMA_OK;
}

int32_t check(const kinema_norm_modulate_args *a) {
    if (a == nullptr || a->x == nullptr || a->out == nullptr)
        return KINEMA_NO_POINTER;
    if (a->batch < 0 || a->tokens < 0 || a->channels <= 0)
        return KINEMA_BAD_SIZE;
    if (a->out_dtype != KINEMA_F32 && a->out_dtype != KINEMA_E4M3 && a->out_dtype != KINEMA_I8)
        return KINEMA_BAD_DTYPE;
    if (a->out_dtype != KINEMA_F32 && (a->out_scale == nullptr || a->workspace == nullptr))
        return KINEMA_NO_POINTER;
    return check(a->norm);
}

int32_t check(const kinema_qk_norm_rope_args *a) {
    if (a == nullptr || a->x == nullptr || a->out == nullptr || (a->cosines == nullptr) != (a->sines == nullptr))
        return KINEMA_NO_POINTER;
    if (a->batch < 0 || a->tokens < 0 || a->heads <= 0 || a->head_dim <= 0)
        return KINEMA_BAD_SIZE;
    if (a->cosines != nullptr && a->head_dim % 2 != 0)
        return KINEMA_BAD_SIZE;
    return a->norm >= KINEMA_NO_NORM && a->norm <= KINEMA_LAYER_NORM ? KINEMA_OK : KINEMA_BAD_OPTION;
}

int32_t check(const kinema_scheduler_step_args *a) {
    if (a == nullptr || a->terms == nullptr || a->term_strides == nullptr || a->coefficients == nullptr ||
        a->outs == nullptr || a->out_strides == nullptr || a->workspace == nullptr)
        return KINEMA_NO_POINTER;
    return a->batch < 0 || a->elements < 0 || a->term_count < 0 || a->out_count < 0 ? KINEMA_BAD_SIZE : KINEMA_OK;
}

int32_t check(const kinema_attention_args *a) {
    if (a == nullptr)
        return KINEMA_NO_POINTER;
    if (a->batch < 0 || a->heads <= 0 || a->head_dim <= 0 || a->query_segments < 1 || a->query_segments > 2 ||
        a->key_segments < 1 || a->key_segments > 3 || a->causal_block < 0)
        return KINEMA_BAD_SIZE;
    for (int64_t s = 0; s < a->query_segments; ++s) {
        if (a->q[s] == nullptr || a->out[s] == nullptr)
            return KINEMA_NO_POINTER;
        if (a->q_tokens[s] < 0)
            return KINEMA_BAD_SIZE;
    }
    for (int64_t s = 0; s < a->key_segments; ++s) {
        if (a->k[s] == nullptr || a->v[s] == nullptr || (a->cosines[s] == nullptr) != (a->sines[s] == nullptr))
            return KINEMA_NO_POINTER;
        if (a->slots[s] < 0 || (a->cosines[s] != nullptr && a->head_dim % 2 != 0))
            return KINEMA_BAD_SIZE;
    }
    if (a->indices != nullptr && (a->counts == nullptr || a->query_tile <= 0 || a->key_tile <= 0 || a->listed < 0))
        return a->counts == nullptr ? KINEMA_NO_POINTER : KINEMA_BAD_SIZE;
    return a->quantize == 0 || a->quantize == 1 ? KINEMA_OK : KINEMA_BAD_OPTION;
}

int32_t check(const kinema_patch_embed_args *a) {
    if (a == nullptr || a->x == nullptr || a->weight == nullptr || a->out == nullptr)
        return KINEMA_NO_POINTER;
    if (a->batch < 0 || a->channels <= 0 || a->patch_t <= 0 || a->patch_h <= 0 || a->patch_w <= 0 || a->features <= 0)
        return KINEMA_BAD_SIZE;
    return a->frames % a->patch_t || a->height % a->patch_h || a->width % a->patch_w ? KINEMA_BAD_SIZE : KINEMA_OK;
}

int32_t check(const kinema_unpatchify_args *a) {
    if (a == nullptr || a->x == nullptr || a->out == nullptr)
        return KINEMA_NO_POINTER;
    return a->batch < 0 || a->channels <= 0 || a->grid_t < 0 || a->grid_h < 0 || a->grid_w < 0 || a->patch_t <= 0 ||
                   a->patch_h <= 0 || a->patch_w <= 0
               ? KINEMA_BAD_SIZE
               : KINEMA_OK;
}

int32_t check(const kinema_conv3d_args *a) {
    if (a == nullptr || a->x == nullptr || a->weight == nullptr || a->out == nullptr)
        return KINEMA_NO_POINTER;
    if (a->batch < 0 || a->in_channels <= 0 || a->out_channels <= 0 || a->frames <= 0 || a->height <= 0 ||
        a->width <= 0 || a->upsample <= 0 || a->kernel_t <= 0 || a->kernel_h <= 0 || a->kernel_w <= 0 ||
        a->stride_t <= 0 || a->stride_h <= 0 || a->stride_w <= 0 || a->pad_top < 0 || a->pad_bottom < 0 ||
        a->pad_left < 0 || a->pad_right < 0)
        return KINEMA_BAD_SIZE;
    if (a->winograd != 0 && a->winograd != 2 && a->winograd != 4)
        return KINEMA_BAD_OPTION;
    if (a->winograd &&
        (a->kernel_h != 3 || a->kernel_w != 3 || a->stride_t != 1 || a->stride_h != 1 || a->stride_w != 1))
        return KINEMA_BAD_SIZE;
    const int64_t past = a->kernel_t > a->stride_t ? a->kernel_t - a->stride_t : 0;
    if (past + a->frames < a->kernel_t || a->height * a->upsample + a->pad_top + a->pad_bottom < a->kernel_h ||
        a->width * a->upsample + a->pad_left + a->pad_right < a->kernel_w)
        return KINEMA_BAD_SIZE;
    return a->activation < KINEMA_NONE || a->activation > KINEMA_SILU ? KINEMA_BAD_OPTION : KINEMA_OK;
}

// A call that `control` may end.
template <class Kernel> int32_t run(const kinema_cpu *cpu, const kinema_control *control, const Kernel &kernel) {
    if (control != nullptr && control->flag_count > 0 && control->flags == nullptr)
        return KINEMA_NO_POINTER;
    Call call(cpu->pool, control);
    kernel(call);
    return call.status();
}

} // namespace

} // namespace kinema

using namespace kinema;

extern "C" {

int32_t kinema_abi_version(void) { return KINEMA_ABI_VERSION; }

const char *kinema_status_text(int32_t status) {
    switch (status) {
    case KINEMA_OK:
        return "success";
    case KINEMA_UNKNOWN_ISA:
        return "this build has no kernels for that instruction set";
    case KINEMA_UNSUPPORTED_ISA:
        return "this processor does not have that instruction set";
    case KINEMA_BAD_SIZE:
        return "a size is negative or does not fit another one";
    case KINEMA_BAD_DTYPE:
        return "a number format is not taken in that place";
    case KINEMA_NO_POINTER:
        return "a pointer that is needed is null";
    case KINEMA_NO_MEMORY:
        return "out of memory";
    case KINEMA_BAD_OPTION:
        return "an option has no such value";
    case KINEMA_INTERRUPTED:
        return "the call was ended before it was done";
    default:
        return "unknown status";
    }
}

const char *kinema_cpu_isa_name(int32_t index) {
    return index >= 0 && index < COUNT ? KNOWN[index].table->isa : nullptr;
}

int32_t kinema_cpu_has(const char *isa) {
    for (const Known &known : KNOWN)
        if (isa != nullptr && std::strcmp(known.table->isa, isa) == 0)
            return known.has();
    return 0;
}

int32_t kinema_cpu_create(const char *isa, kinema_cpu **made) {
    if (made == nullptr)
        return KINEMA_NO_POINTER;
    *made = nullptr;
    for (const Known &known : KNOWN) {
        if (isa != nullptr && std::strcmp(known.table->isa, isa) != 0)
            continue;
        if (!known.has()) {
            if (isa != nullptr)
                return KINEMA_UNSUPPORTED_ISA;
            continue;
        }
        *made = new (std::nothrow) kinema_cpu{known.table, {}};
        return *made != nullptr ? KINEMA_OK : KINEMA_NO_MEMORY;
    }
    return KINEMA_UNKNOWN_ISA;
}

void kinema_cpu_destroy(kinema_cpu *cpu) { delete cpu; }

const char *kinema_cpu_isa(const kinema_cpu *cpu) { return cpu->table->isa; }

int32_t kinema_cpu_use_threads(kinema_cpu *cpu, kinema_parallel parallel) {
    if (cpu == nullptr)
        return KINEMA_NO_POINTER;
    cpu->pool.use(parallel);
    return KINEMA_OK;
}

int32_t kinema_activate(const kinema_cpu *cpu, int32_t activation, int64_t count, const float *x, float *y) {
    if (activation < KINEMA_NONE || activation > KINEMA_SILU)
        return KINEMA_BAD_OPTION;
    cpu->table->activate(activation, count, x, y);
    return KINEMA_OK;
}

int32_t kinema_exp(const kinema_cpu *cpu, int64_t count, const float *x, float *y) {
    cpu->table->exp(count, x, y);
    return KINEMA_OK;
}

int64_t kinema_linear_packed_bytes(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated) {
    return cpu->table->linear_packed_bytes(in_features, out_features, dtype, gated);
}

int32_t kinema_linear_pack(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated, const void *rows,
    void *packed, const kinema_control *control) {
    if (rows == nullptr || packed == nullptr)
        return KINEMA_NO_POINTER;
    if (in_features <= 0 || out_features <= 0)
        return KINEMA_BAD_SIZE;
    if (dtype < KINEMA_F32 || dtype > KINEMA_I8)
        return KINEMA_BAD_DTYPE;
    return run(cpu, control, [&](Call &call) {
        cpu->table->linear_pack(in_features, out_features, dtype, gated, rows, packed, call);
    });
}

int64_t kinema_linear_workspace(const kinema_cpu *cpu, const kinema_linear_args *args) {
    return check(args) == KINEMA_OK ? cpu->table->linear_workspace(*args) : 0;
}

int32_t kinema_linear_code_top(const kinema_cpu *cpu) { return cpu->table->code_top; }

int32_t kinema_linear_multiplies_bf16(const kinema_cpu *cpu) { return cpu->table->multiplies_bf16; }

int32_t kinema_linear(const kinema_cpu *cpu, const kinema_linear_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    if (args->batch == 0 || args->tokens == 0)
        return KINEMA_OK;
    if (args->workspace == nullptr)
        return KINEMA_NO_POINTER;
    return run(cpu, control, [&](Call &call) { cpu->table->linear(*args, call); });
}

int32_t
kinema_norm_modulate(const kinema_cpu *cpu, const kinema_norm_modulate_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    return run(cpu, control, [&](Call &call) { cpu->table->norm_modulate(*args, call); });
}

int32_t
kinema_qk_norm_rope(const kinema_cpu *cpu, const kinema_qk_norm_rope_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    return run(cpu, control, [&](Call &call) { cpu->table->qk_norm_rope(*args, call); });
}

int32_t
kinema_scheduler_step(const kinema_cpu *cpu, const kinema_scheduler_step_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    return run(cpu, control, [&](Call &call) {
        if (call.interrupted(0))
            return;
        Call whole(cpu->pool, nullptr); // its terms would be half of this step and half of the last
        cpu->table->scheduler_step(*args, whole);
    });
}

int64_t kinema_attention_workspace(const kinema_cpu *cpu, const kinema_attention_args *args) {
    return check(args) == KINEMA_OK ? cpu->table->attention_workspace(*args) : 0;
}

int32_t kinema_attention(const kinema_cpu *cpu, const kinema_attention_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    if (args->workspace == nullptr)
        return KINEMA_NO_POINTER;
    return run(cpu, control, [&](Call &call) { cpu->table->attention(*args, call); });
}

int64_t kinema_patch_embed_workspace(const kinema_cpu *cpu, const kinema_patch_embed_args *args) {
    return check(args) == KINEMA_OK ? cpu->table->patch_embed_workspace(*args) : 0;
}

int32_t kinema_patch_embed(const kinema_cpu *cpu, const kinema_patch_embed_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    if (args->workspace == nullptr)
        return KINEMA_NO_POINTER;
    return run(cpu, control, [&](Call &call) { cpu->table->patch_embed(*args, call); });
}

int32_t kinema_unpatchify(const kinema_cpu *cpu, const kinema_unpatchify_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    return run(cpu, control, [&](Call &call) { cpu->table->unpatchify(*args, call); });
}

int64_t kinema_winograd_packed_bytes(
    const kinema_cpu *cpu, int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile) {
    return tile == 2 || tile == 4 ? cpu->table->winograd_packed_bytes(in_channels, out_channels, kernel_t, tile) : 0;
}

int32_t kinema_winograd_pack(
    const kinema_cpu *cpu, int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile,
    const float *weight, void *packed, const kinema_control *control) {
    if (weight == nullptr || packed == nullptr)
        return KINEMA_NO_POINTER;
    if (in_channels <= 0 || out_channels <= 0 || kernel_t <= 0)
        return KINEMA_BAD_SIZE;
    if (tile != 2 && tile != 4)
        return KINEMA_BAD_OPTION;
    return run(cpu, control, [&](Call &call) {
        cpu->table->winograd_pack(in_channels, out_channels, kernel_t, tile, weight, packed, call);
    });
}

int64_t kinema_conv3d_workspace(const kinema_cpu *cpu, const kinema_conv3d_args *args) {
    return check(args) == KINEMA_OK ? cpu->table->conv3d_workspace(*args) : 0;
}

int32_t kinema_conv3d(const kinema_cpu *cpu, const kinema_conv3d_args *args, const kinema_control *control) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    if (args->workspace == nullptr)
        return KINEMA_NO_POINTER;
    return run(cpu, control, [&](Call &call) { cpu->table->conv3d(*args, call); });
}

} // extern "C"
