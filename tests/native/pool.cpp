// The pool itself (csrc/cpu/pool.cpp), which the library does not show: who takes which task, and whom a late thread
// holds up. Compiled with its sources. Exits 0 if all is right.
#include "pool.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

using namespace kinema;

namespace {

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                       \
            std::_Exit(1);                                                                                             \
        }                                                                                                              \
    } while (false)

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds LONG{300}; // a task of a thread whose core was taken

// What ran where.
struct Seen {
    std::vector<std::atomic<int>> times; // of each task
    std::atomic<int> by_others{0}, highest{0};
    bool others_are_slow = false;
    bool caller_waits_for_others = false;

    explicit Seen(int64_t tasks) : times(static_cast<size_t>(tasks)) {}

    static void body(void *data, int64_t task, int thread) {
        Seen &seen = *static_cast<Seen *>(data);
        seen.times[static_cast<size_t>(task)].fetch_add(1);
        for (int before = seen.highest.load(); thread > before && !seen.highest.compare_exchange_weak(before, thread);)
            ;
        if (thread != 0) {
            seen.by_others.fetch_add(1);
            if (seen.others_are_slow)
                std::this_thread::sleep_for(LONG);
        }
        while (thread == 0 && seen.caller_waits_for_others && seen.by_others.load() == 0)
            std::this_thread::yield();
    }

    void run(Pool &pool, int threads) {
        Call call(pool, nullptr);
        pool.run(call, threads, static_cast<int64_t>(times.size()), body, this);
        for (const std::atomic<int> &count : times)
            CHECK(count.load() == 1);
        CHECK(highest.load() < threads);
    }
};

// Thousands of short runs: for more threads, then for fewer, some of which come while workers are late for the last.
void every_task_once(Pool &pool) {
    for (int i = 0; i < 20000; ++i) {
        Seen seen(1 + i % 7);
        seen.run(pool, 1 + i % 5);
        if (i % 1000 == 0) // they fall asleep
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
}

// Others do come, also after a long sleep.
void others_take_part(Pool &pool) {
    for (const int pause : {0, 0, 20}) {
        std::this_thread::sleep_for(std::chrono::milliseconds(pause));
        Seen seen(2);
        seen.caller_waits_for_others = true;
        seen.run(pool, 2);
        CHECK(seen.by_others.load() >= 1);
    }
}

// A thread that is held up delays the call by the task that it has begun: the caller does all others.
void a_late_thread_costs_its_task(Pool &pool) {
    Seen seen(1000);
    seen.others_are_slow = seen.caller_waits_for_others = true;
    const auto begin = Clock::now();
    seen.run(pool, 2);
    CHECK(Clock::now() - begin < 3 * LONG); // far from the 500 that would be its half
    CHECK(seen.by_others.load() >= 1 && seen.by_others.load() <= 3);
}

// Calls at the same time have threads of their own; those that are too many run alone.
void calls_at_once(Pool &pool) {
    std::atomic<int> inside{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 2; ++i)
        callers.emplace_back([&] {
            ++inside;
            while (inside.load() < 2)
                std::this_thread::yield();
            for (int round = 0; round < 50; ++round) {
                Seen seen(2);
                seen.caller_waits_for_others = true;
                seen.run(pool, 2);
            }
        });
    for (std::thread &caller : callers)
        caller.join();
    callers.clear();
    for (int i = 0; i < 12; ++i)
        callers.emplace_back([&] {
            for (int round = 0; round < 200; ++round)
                Seen(5).run(pool, 3);
        });
    for (std::thread &caller : callers)
        caller.join();
}

// Once a flag is set no task begins, whoever would take it, and nobody waits for one.
void flags_end_a_run(Pool &pool) {
    for (const int threads : {1, 4}) {
        struct Work {
            Call *call;
            int32_t flag = 0;
            std::atomic<int> begun{0};
        } work;
        const int32_t *flags[] = {&work.flag};
        kinema_control control{};
        control.flags = flags;
        control.flag_count = 1;
        Call call(pool, &control);
        work.call = &call;
        const auto body = [](void *data, int64_t, int) {
            Work &mine = *static_cast<Work *>(data);
            if (++mine.begun == 50)
                __atomic_store_n(&mine.flag, 1, __ATOMIC_RELAXED);
        };
        pool.run(call, threads, int64_t{1} << 40, body, &work);
        CHECK(call.status() == KINEMA_INTERRUPTED);
        CHECK(work.begun.load() >= 50 && work.begun.load() < 50 + 100000);
    }
}

} // namespace

int main() {
    {
        Pool pool;
        every_task_once(pool);
        others_take_part(pool);
        a_late_thread_costs_its_task(pool);
        calls_at_once(pool);
        flags_end_a_run(pool);
        every_task_once(pool);
    }
    for (int i = 0; i < 50; ++i) { // pools end while their threads are about to sleep
        Pool pool;
        Seen(4).run(pool, 3);
    }
    std::printf("right\n");
    return 0;
}
