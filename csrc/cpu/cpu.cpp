// The C interface: selects a kernel table and calls it. Arguments are checked in checks.h.
#include "arrays.h"
#include "checks.h"
#include "table.h"

#include <cstring>
#include <new>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace kinema {

namespace {

#if defined(__x86_64__) || defined(__i386__)
// An instruction set is usable only if the operating system saves its registers.
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

struct Candidate {
    const Table *table;
    bool (*is_supported)();
};

const Candidate CANDIDATES[] = {
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
constexpr int32_t CANDIDATE_COUNT = sizeof CANDIDATES / sizeof CANDIDATES[0];

// Whether a table multiplies what an op is given.
template <class Args> bool has_products(const Table &, const Args &) { return true; }
bool has_products(const Table &table, const kinema_attention_args &args) {
    return args.qk_dtype != KINEMA_BF16 || table.multiplies_bf16 != 0;
}

template <class Args> int32_t check(const kinema_cpu *cpu, const Args *args) {
    const int32_t status = first_error({check_pointers(1, {cpu}), check_pointers(alignof(Args), {args})});
    if (status == KINEMA_OK && !has_products(*cpu->table, *args))
        return KINEMA_BAD_DTYPE;
    return status == KINEMA_OK ? check_sizes(*args) : status;
}

// The scratch size of an op, or a negative status.
template <class Args>
int64_t workspace(const kinema_cpu *cpu, const Args *args, int64_t (*Table::*bytes)(const Args &)) {
    const int32_t status = check(cpu, args);
    if (status != KINEMA_OK)
        return status == NOTHING_TO_DO ? 0 : -status;
    return (cpu->table->*bytes)(*args);
}

// Runs a call that `control` may interrupt, unless `status` is already an error.
template <class Kernel>
int32_t run(int32_t status, const kinema_cpu *cpu, const kinema_control *control, const Kernel &kernel) {
    if (status == KINEMA_OK)
        status = check_control(control);
    if (status != KINEMA_OK)
        return status == NOTHING_TO_DO ? KINEMA_OK : status;
    Call call(cpu->pool, control);
    kernel(call);
    return call.status();
}

template <class Args> int32_t check_all(const kinema_cpu *cpu, const Args *args) {
    const int32_t status = check(cpu, args);
    return status == KINEMA_OK ? check_memory(*args) : status;
}

template <class Args>
int32_t
run(const kinema_cpu *cpu, const Args *args, const kinema_control *control, void (*Table::*op)(const Args &, Call &)) {
    return run(check_all(cpu, args), cpu, control, [&](Call &call) { (cpu->table->*op)(*args, call); });
}

// y = f(x), elementwise.
int32_t check_elements(const kinema_cpu *cpu, int64_t count, const float *x, const float *y) {
    if (cpu == nullptr)
        return KINEMA_NO_POINTER;
    if (count < 0 || count > MAX_ELEMENTS)
        return KINEMA_BAD_SIZE;
    return count == 0 ? NOTHING_TO_DO : check_pointers(4, {x, y});
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
    case KINEMA_MISALIGNED:
        return "a pointer is not aligned as its numbers, packed weights or scratch must be";
    case KINEMA_BAD_INDEX:
        return "a length, a count or an index lies beyond what there is";
    default:
        return "unknown status";
    }
}

const char *kinema_cpu_isa_name(int32_t index) {
    return index >= 0 && index < CANDIDATE_COUNT ? CANDIDATES[index].table->isa : nullptr;
}

int32_t kinema_cpu_has(const char *isa) {
    for (const Candidate &candidate : CANDIDATES)
        if (isa != nullptr && std::strcmp(candidate.table->isa, isa) == 0)
            return candidate.is_supported();
    return 0;
}

int32_t kinema_cpu_create(const char *isa, kinema_cpu **made) {
    if (made == nullptr)
        return KINEMA_NO_POINTER;
    *made = nullptr;
    for (const Candidate &candidate : CANDIDATES) {
        if (isa != nullptr && std::strcmp(candidate.table->isa, isa) != 0)
            continue;
        if (!candidate.is_supported()) {
            if (isa != nullptr)
                return KINEMA_UNSUPPORTED_ISA;
            continue;
        }
        *made = new (std::nothrow) kinema_cpu{candidate.table, {}};
        return *made != nullptr ? KINEMA_OK : KINEMA_NO_MEMORY;
    }
    return KINEMA_UNKNOWN_ISA;
}

void kinema_cpu_destroy(kinema_cpu *cpu) { delete cpu; }

const char *kinema_cpu_isa(const kinema_cpu *cpu) { return cpu != nullptr ? cpu->table->isa : nullptr; }

int32_t kinema_cpu_use_threads(kinema_cpu *cpu, kinema_parallel parallel) {
    if (cpu == nullptr)
        return KINEMA_NO_POINTER;
    cpu->pool.use(parallel);
    return KINEMA_OK;
}

int32_t kinema_activate(const kinema_cpu *cpu, int32_t activation, int64_t count, const float *x, float *y) {
    if (activation < KINEMA_NONE || activation > KINEMA_SILU)
        return KINEMA_BAD_OPTION;
    const int32_t status = check_elements(cpu, count, x, y);
    if (status == KINEMA_OK)
        cpu->table->activate(activation, count, x, y);
    return status == NOTHING_TO_DO ? KINEMA_OK : status;
}

int32_t kinema_exp(const kinema_cpu *cpu, int64_t count, const float *x, float *y) {
    const int32_t status = check_elements(cpu, count, x, y);
    if (status == KINEMA_OK)
        cpu->table->exp(count, x, y);
    return status == NOTHING_TO_DO ? KINEMA_OK : status;
}

int64_t kinema_linear_packed_bytes(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated) {
    const int32_t status =
        cpu == nullptr ? KINEMA_NO_POINTER : check_linear_weight(in_features, out_features, dtype, gated);
    if (status != KINEMA_OK)
        return status == NOTHING_TO_DO ? 0 : -status;
    return cpu->table->linear_packed_bytes(in_features, out_features, dtype, gated);
}

int32_t kinema_linear_pack(
    const kinema_cpu *cpu, int64_t in_features, int64_t out_features, int32_t dtype, int32_t gated, const void *rows,
    void *packed, const kinema_control *control) {
    int32_t status = cpu == nullptr ? KINEMA_NO_POINTER : check_linear_weight(in_features, out_features, dtype, gated);
    if (status == KINEMA_OK)
        status = check_packing(rows, dtype, packed);
    return run(status, cpu, control, [&](Call &call) {
        cpu->table->linear_pack(in_features, out_features, dtype, gated, rows, packed, call);
    });
}

int32_t kinema_linear_code_top(const kinema_cpu *cpu) {
    return cpu != nullptr ? cpu->table->code_max : -KINEMA_NO_POINTER;
}

int32_t kinema_linear_multiplies_bf16(const kinema_cpu *cpu) {
    return cpu != nullptr ? cpu->table->multiplies_bf16 : -KINEMA_NO_POINTER;
}

int64_t kinema_linear_workspace(const kinema_cpu *cpu, const kinema_linear_args *args) {
    return workspace(cpu, args, &Table::linear_workspace);
}

int32_t kinema_linear(const kinema_cpu *cpu, const kinema_linear_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::linear);
}

int64_t kinema_norm_modulate_workspace(const kinema_cpu *cpu, const kinema_norm_modulate_args *args) {
    return workspace(cpu, args, &Table::norm_modulate_workspace);
}

int32_t
kinema_norm_modulate(const kinema_cpu *cpu, const kinema_norm_modulate_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::norm_modulate);
}

int64_t kinema_qk_norm_rope_workspace(const kinema_cpu *cpu, const kinema_qk_norm_rope_args *args) {
    return workspace(cpu, args, &Table::qk_norm_rope_workspace);
}

int32_t
kinema_qk_norm_rope(const kinema_cpu *cpu, const kinema_qk_norm_rope_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::qk_norm_rope);
}

int64_t kinema_scheduler_step_workspace(const kinema_cpu *cpu, const kinema_scheduler_step_args *args) {
    return workspace(cpu, args, &Table::scheduler_step_workspace);
}

int32_t
kinema_scheduler_step(const kinema_cpu *cpu, const kinema_scheduler_step_args *args, const kinema_control *control) {
    return run(check_all(cpu, args), cpu, control, [&](Call &call) {
        if (call.interrupted(0))
            return;
        Call whole(cpu->pool, nullptr); // an interrupted step would mix old and new values in its terms
        cpu->table->scheduler_step(*args, whole);
    });
}

int64_t kinema_attention_workspace(const kinema_cpu *cpu, const kinema_attention_args *args) {
    return workspace(cpu, args, &Table::attention_workspace);
}

int32_t kinema_attention(const kinema_cpu *cpu, const kinema_attention_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::attention);
}

int64_t kinema_patch_embed_workspace(const kinema_cpu *cpu, const kinema_patch_embed_args *args) {
    return workspace(cpu, args, &Table::patch_embed_workspace);
}

int32_t kinema_patch_embed(const kinema_cpu *cpu, const kinema_patch_embed_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::patch_embed);
}

int32_t kinema_unpatchify(const kinema_cpu *cpu, const kinema_unpatchify_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::unpatchify);
}

int64_t kinema_winograd_packed_bytes(
    const kinema_cpu *cpu, int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile) {
    const int32_t status =
        cpu == nullptr ? KINEMA_NO_POINTER : check_winograd_weight(in_channels, out_channels, kernel_t, tile);
    if (status != KINEMA_OK)
        return status == NOTHING_TO_DO ? 0 : -status;
    return cpu->table->winograd_packed_bytes(in_channels, out_channels, kernel_t, tile);
}

int32_t kinema_winograd_pack(
    const kinema_cpu *cpu, int64_t in_channels, int64_t out_channels, int64_t kernel_t, int32_t tile,
    const float *weight, void *packed, const kinema_control *control) {
    int32_t status =
        cpu == nullptr ? KINEMA_NO_POINTER : check_winograd_weight(in_channels, out_channels, kernel_t, tile);
    if (status == KINEMA_OK)
        status = check_packing(weight, KINEMA_F32, packed);
    return run(status, cpu, control, [&](Call &call) {
        cpu->table->winograd_pack(in_channels, out_channels, kernel_t, tile, weight, packed, call);
    });
}

int64_t kinema_conv3d_workspace(const kinema_cpu *cpu, const kinema_conv3d_args *args) {
    return workspace(cpu, args, &Table::conv3d_workspace);
}

int32_t kinema_conv3d(const kinema_cpu *cpu, const kinema_conv3d_args *args, const kinema_control *control) {
    return run(cpu, args, control, &Table::conv3d);
}

} // extern "C"
