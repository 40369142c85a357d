// kinema's threads, driven hard: many callers, whose threads do the work, calls that end early, a fork. Run by the
// tests, and by `make tsan` under ThreadSanitizer, which must have nothing to report. Exits 0 if all is right.
#include <kinema.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

namespace {

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                       \
            std::_Exit(1);                                                                                             \
        }                                                                                                              \
    } while (false)

using Floats = std::vector<float>;

Floats numbers(size_t count, float step) {
    Floats made(count);
    for (size_t i = 0; i < count; ++i)
        made[i] = std::sin(step * static_cast<float>(i));
    return made;
}

// 64-byte aligned scratch
struct Scratch {
    void *memory;
    explicit Scratch(int64_t bytes)
        : memory(std::aligned_alloc(64, static_cast<size_t>((std::max<int64_t>(bytes, 1) + 63) / 64 * 64))) {}
    ~Scratch() { std::free(memory); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
};

// A packed weight and its input, on which one call after another can be made.
struct Linear {
    static constexpr int64_t TOKENS = 150, IN = 70, OUT = 90;
    kinema_cpu *cpu;
    Floats x = numbers(TOKENS * IN, 0.7f), weight = numbers(OUT * IN, 0.3f), wanted = Floats(TOKENS * OUT);
    Scratch packed;

    explicit Linear(kinema_cpu *given) : cpu(given), packed(kinema_linear_packed_bytes(given, IN, OUT, KINEMA_F32, 0)) {
        CHECK(kinema_linear_pack(cpu, IN, OUT, KINEMA_F32, 0, weight.data(), packed.memory, nullptr) == KINEMA_OK);
        CHECK(call(1, wanted, nullptr) == KINEMA_OK);
    }

    int32_t call(int32_t threads, Floats &out, const kinema_control *control) const {
        kinema_linear_args args{};
        args.batch = 1;
        args.tokens = TOKENS;
        args.x = x.data();
        args.x_stride_s = args.x_features = args.in_features = IN;
        args.weight = packed.memory;
        args.out = out.data();
        args.out_stride_s = args.out_features = OUT;
        args.threads = threads;
        const Scratch scratch(kinema_linear_workspace(cpu, &args));
        args.workspace = scratch.memory;
        return kinema_linear(cpu, &args, control);
    }

    void check(int32_t threads) const {
        Floats out(TOKENS * OUT);
        CHECK(call(threads, out, nullptr) == KINEMA_OK);
        CHECK(out == wanted);
    }
};

struct Attention {
    static constexpr int64_t TOKENS = 700, HEADS = 2, DIM = 32;
    kinema_cpu *cpu;
    Floats q = numbers(TOKENS * HEADS * DIM, 0.11f), wanted = Floats(TOKENS * HEADS * DIM);

    explicit Attention(kinema_cpu *given) : cpu(given) { CHECK(call(1, wanted, nullptr) == KINEMA_OK); }

    int32_t call(int32_t threads, Floats &out, const kinema_control *control) const {
        kinema_attention_args args{};
        args.batch = args.query_segments = args.key_segments = 1;
        args.heads = HEADS;
        args.head_dim = DIM;
        args.q[0] = args.k[0] = args.v[0] = q.data();
        args.q_stride_n[0] = args.k_stride_n[0] = args.v_stride_n[0] = TOKENS * DIM;
        args.q_stride_s[0] = args.k_stride_r[0] = args.v_stride_r[0] = DIM;
        args.q_tokens[0] = args.slots[0] = TOKENS;
        args.out[0] = out.data();
        args.out_stride_s[0] = HEADS * DIM;
        args.scale = 0.2f;
        args.threads = threads;
        const Scratch scratch(kinema_attention_workspace(cpu, &args));
        args.workspace = scratch.memory;
        return kinema_attention(cpu, &args, control);
    }

    void check(int32_t threads) const {
        Floats out(wanted.size());
        CHECK(call(threads, out, nullptr) == KINEMA_OK);
        CHECK(out == wanted);
    }
};

void at_once(int callers, const std::function<void(int)> &work) {
    std::vector<std::thread> threads;
    for (int i = 0; i < callers; ++i)
        threads.emplace_back(work, i);
    for (std::thread &thread : threads)
        thread.join();
}

// The host's threads: started anew for each parallel region, one more than was asked for.
void host(void (*body)(void *), void *data, unsigned threads, unsigned) {
    std::vector<std::thread> others;
    for (unsigned i = 0; i < threads; ++i)
        others.emplace_back(body, data);
    body(data);
    for (std::thread &other : others)
        other.join();
}

void many_callers(const Linear &linear, const Attention &attention) {
    at_once(4, [&](int caller) {
        for (int i = 0; i < 12; ++i) {
            linear.check(1 + (caller + i) % 5);
            if (i % 4 == 0)
                attention.check(3);
        }
    });
}

void handles_come_and_go() {
    at_once(3, [](int) {
        for (int i = 0; i < 4; ++i) {
            kinema_cpu *cpu;
            CHECK(kinema_cpu_create(nullptr, &cpu) == KINEMA_OK);
            Linear(cpu).check(4);
            kinema_cpu_destroy(cpu);
        }
    });
}

// More threads than any machine has: as many as make sense are started.
void more_threads_than_tasks(const Attention &attention) { attention.check(KINEMA_MAX_THREADS); }

// ---- calls that end early

struct Polls {
    std::thread::id caller = std::this_thread::get_id();
    int count = 0, most = 0; // it says stop when it is asked for the `most`th time
    static int32_t answer(void *data) {
        Polls &polls = *static_cast<Polls *>(data);
        CHECK(std::this_thread::get_id() == polls.caller);
        return ++polls.count >= polls.most;
    }
};

void polls_stop(const Attention &attention, int32_t threads) {
    // two are sure: the caller's thread looks when keys are packed and when queries begin, whoever takes the tasks
    const int sure = threads == 1 ? 5 : 2, never = 1000000;
    for (const int most : {1, 2, sure, never}) {
        Floats out(attention.wanted.size());
        Polls polls;
        polls.most = most;
        kinema_control control{};
        control.poll = Polls::answer;
        control.data = &polls;
        CHECK(attention.call(threads, out, &control) == (most == never ? KINEMA_OK : KINEMA_INTERRUPTED));
        if (most == never)
            CHECK(polls.count >= sure && out == attention.wanted);
        else
            CHECK(polls.count == most); // and not again
    }
}

void flags_stop(const Linear &linear, const Attention &attention, int32_t threads) {
    int32_t quiet = 0, set = 1;
    const int32_t *flags[] = {&quiet, &set};
    kinema_control control{};
    control.flags = flags;
    control.flag_count = 2;
    Floats out(linear.wanted.size(), 7.0f);
    CHECK(linear.call(threads, out, &control) == KINEMA_INTERRUPTED);
    CHECK(out == Floats(linear.wanted.size(), 7.0f)); // it was set before
    control.flag_count = 1;
    CHECK(linear.call(threads, out, &control) == KINEMA_OK);
    CHECK(out == linear.wanted);
    // set at any moment, by another thread
    for (int delay = 0; delay < 12; ++delay) {
        int32_t flag = 0, status = KINEMA_OK;
        const int32_t *one[] = {&flag};
        control.flags = one;
        std::thread other([&] {
            std::this_thread::sleep_for(std::chrono::microseconds(300 * delay));
            __atomic_store_n(&flag, 1, __ATOMIC_RELAXED);
        });
        Floats result(attention.wanted.size());
        for (int calls = 0; status == KINEMA_OK; ++calls) {
            status = attention.call(threads, result, &control);
            if (status == KINEMA_OK)
                CHECK(result == attention.wanted);
            CHECK(calls < 100000);
        }
        CHECK(status == KINEMA_INTERRUPTED);
        other.join();
    }
    attention.check(threads); // and nothing of it stays
}

// A callback that calls: the threads are taken, so it runs on its caller's.
struct Nested {
    const Linear *linear;
    static int32_t answer(void *data) {
        static_cast<Nested *>(data)->linear->check(3);
        return 0;
    }
};

void polls_may_call(const Linear &linear, const Attention &attention) {
    Nested nested{&linear};
    kinema_control control{};
    control.poll = Nested::answer;
    control.data = &nested;
    control.interval_ms = 1;
    Floats out(attention.wanted.size());
    CHECK(attention.call(3, out, &control) == KINEMA_OK);
    CHECK(out == attention.wanted);
}

// ---- a child, forked while other threads are within calls

void fork_amid_calls(const Linear &linear, const Attention &attention) {
    std::atomic<bool> done{false};
    std::thread busy([&] {
        while (!done.load())
            attention.check(3);
    });
    for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3 + i));
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            linear.check(3);
            attention.check(2);
            std::_Exit(0);
        }
        int status = -1, waited = 0;
        while (waitpid(child, &status, WNOHANG) == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
            CHECK(++waited < 3000);
        }
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    done.store(true);
    busy.join();
}

} // namespace

int main(int argc, char **argv) {
    kinema_cpu *cpu;
    const int32_t status = kinema_cpu_create(argc > 1 ? argv[1] : nullptr, &cpu);
    if (status != KINEMA_OK) {
        std::fprintf(stderr, "kinema_cpu_create: %s\n", kinema_status_text(status));
        return 1;
    }
    {
        const Linear linear(cpu);
        const Attention attention(cpu);
        for (const bool own : {true, false, true}) {
            CHECK(kinema_cpu_use_threads(cpu, own ? nullptr : host) == KINEMA_OK);
            many_callers(linear, attention);
            more_threads_than_tasks(attention);
            for (const int32_t threads : {1, 3}) {
                polls_stop(attention, threads);
                flags_stop(linear, attention, threads);
            }
            polls_may_call(linear, attention);
            fork_amid_calls(linear, attention);
        }
        handles_come_and_go();
    }
    std::printf("%s: right\n", kinema_cpu_isa(cpu));
    kinema_cpu_destroy(cpu);
    return 0;
}
