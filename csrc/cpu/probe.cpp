// Peak performance of the machine: the functions that `kinema bench` times.
#include "arrays.h"
#include "checks.h"
#include "table.h"

#include <cstring>

using namespace kinema;

namespace {

constexpr int64_t MAX_STEPS = 1ll << 40; // hours; and the number of operations cannot overflow

struct Arithmetic {
    const Table *table;
    int32_t dtype;
    int64_t steps;
    int64_t done; // by one thread; all do the same
};

struct Copy {
    const char *from;
    char *to;
    int64_t bytes, parts;
};

} // namespace

extern "C" {

int32_t
kinema_probe_arithmetic(const kinema_cpu *cpu, int32_t dtype, int64_t steps, int32_t threads, int64_t *operations) {
    if (cpu == nullptr || operations == nullptr)
        return KINEMA_NO_POINTER;
    if (steps < 1 || steps > MAX_STEPS || threads < 1 || !is_thread_count(threads))
        return KINEMA_BAD_SIZE;
    if (dtype != KINEMA_F32 && dtype != KINEMA_I8 && (dtype != KINEMA_BF16 || cpu->table->multiplies_bf16 == 0))
        return KINEMA_BAD_DTYPE;
    Arithmetic work{cpu->table, dtype, steps, 0};
    const auto body = [](void *data, int64_t task, int) {
        Arithmetic &mine = *static_cast<Arithmetic *>(data);
        const int64_t done = mine.table->probe(mine.dtype, mine.steps);
        if (task == 0)
            mine.done = done;
    };
    Call(cpu->pool, nullptr).run(threads, threads, body, &work);
    *operations = work.done * threads;
    return KINEMA_OK;
}

int32_t kinema_probe_copy(const kinema_cpu *cpu, const void *from, void *to, int64_t bytes, int32_t threads) {
    if (cpu == nullptr || from == nullptr || to == nullptr)
        return KINEMA_NO_POINTER;
    if (bytes < 1 || bytes > MAX_ELEMENTS || threads < 1 || !is_thread_count(threads))
        return KINEMA_BAD_SIZE;
    Copy work{static_cast<const char *>(from), static_cast<char *>(to), bytes, threads};
    const auto body = [](void *data, int64_t task, int) {
        const Copy &all = *static_cast<const Copy *>(data);
        const int64_t begin = all.bytes * task / all.parts, end = all.bytes * (task + 1) / all.parts;
        std::memcpy(all.to + begin, all.from + begin, static_cast<size_t>(end - begin));
    };
    Call(cpu->pool, nullptr).run(threads, threads, body, &work);
    return KINEMA_OK;
}

} // extern "C"
