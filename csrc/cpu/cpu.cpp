// The C interface: which table runs, and what is refused before it does.
#include "table.h"

#include <cstring>
#include <new>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace kinema {

namespace {

#if defined(KINEMA_WITH_AVX2) || defined(KINEMA_WITH_AVX512)
// What the processor has counts only if the operating system saves its registers.
uint64_t saved_registers() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool has_avx2() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return false;
    const uint32_t wanted = (1u << 12) | (1u << 27) | (1u << 28) | (1u << 29); // FMA, OSXSAVE, AVX, F16C
    if ((c & wanted) != wanted || (saved_registers() & 0x6) != 0x6)
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 5)) != 0;
}
#endif

#if defined(KINEMA_WITH_AVX512)
bool has_avx512() {
    uint32_t a, b, c, d;
    if (!has_avx2() || (saved_registers() & 0xe6) != 0xe6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    const uint32_t wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); // F, DQ, BW, VL
    return (b & wanted) == wanted;
}
#endif

bool always() { return true; }

struct Known {
    const Table *table;
    bool (*has)();
};

const Known KNOWN[] = {
#if defined(KINEMA_WITH_AVX512)
    {&avx512_table, has_avx512},
#endif
#if defined(KINEMA_WITH_AVX2)
    {&avx2_table, has_avx2},
#endif
    {&portable_table, always},
};
constexpr int32_t COUNT = sizeof KNOWN / sizeof KNOWN[0];

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
    if (a->x_dtype != KINEMA_F32 && (a->x2 != nullptr || a->quantize != 0))
        return KINEMA_BAD_DTYPE;
    if (a->weight_dtype < KINEMA_F32 || a->weight_dtype > KINEMA_I8 || (a->quantize && a->weight_dtype != KINEMA_I8))
        return KINEMA_BAD_DTYPE;
    if (a->activation < KINEMA_NONE || a->activation > KINEMA_SILU)
        return KINEMA_BAD_OPTION;
    return KINEMA_OK;
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
    void *packed) {
    if (rows == nullptr || packed == nullptr)
        return KINEMA_NO_POINTER;
    if (in_features <= 0 || out_features <= 0)
        return KINEMA_BAD_SIZE;
    if (dtype < KINEMA_F32 || dtype > KINEMA_I8)
        return KINEMA_BAD_DTYPE;
    cpu->table->linear_pack(in_features, out_features, dtype, gated, rows, packed);
    return KINEMA_OK;
}

int64_t kinema_linear_workspace(const kinema_cpu *cpu, const kinema_linear_args *args) {
    return check(args) == KINEMA_OK ? cpu->table->linear_workspace(*args) : 0;
}

int32_t kinema_linear(const kinema_cpu *cpu, const kinema_linear_args *args) {
    const int32_t status = check(args);
    if (status != KINEMA_OK)
        return status;
    if (args->batch == 0 || args->tokens == 0)
        return KINEMA_OK;
    if (args->workspace == nullptr)
        return KINEMA_NO_POINTER;
    cpu->table->linear(*args, cpu->pool);
    return KINEMA_OK;
}

} // extern "C"
