#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace kinema {

namespace {

long process() {
#if defined(_WIN32)
    return 0;
#else
    return static_cast<long>(getpid());
#endif
}

std::mutex making_states;

// A call that the host's threads share: each takes a number, then tasks until there are no more.
struct Shared {
    Body body;
    void *data;
    int64_t tasks;
    int threads;
    std::atomic<int> arrived{0};
    std::atomic<int64_t> next{0};

    static void enter(void *self) {
        Shared &all = *static_cast<Shared *>(self);
        const int thread = all.arrived.fetch_add(1);
        if (thread >= all.threads)
            return;
        for (int64_t task = all.next.fetch_add(1); task < all.tasks; task = all.next.fetch_add(1))
            all.body(all.data, task, thread);
    }
};

} // namespace

struct Pool::State {
    long pid = process();
    std::mutex busy; // held by the call that has the threads
    std::mutex mutex;
    std::condition_variable wake, done;
    std::vector<std::thread> workers;
    bool closing = false;
    uint64_t round = 0; // a new one for every call
    int wanted = 0;     // workers of this round
    int working = 0;
    Body body = nullptr;
    void *data = nullptr;
    int64_t tasks = 0;
    std::atomic<int64_t> next{0};

    void take(int thread) {
        for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1))
            body(data, task, thread);
    }

    void work(int thread) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return closing || (round != seen && thread <= wanted); });
            if (closing)
                return;
            seen = round;
            lock.unlock();
            take(thread);
            lock.lock();
            if (--working == 0)
                done.notify_one();
        }
    }

    // As many workers as there can be, at most `count`.
    int grow(int count) {
        try {
            while (static_cast<int>(workers.size()) < count) {
                const int thread = static_cast<int>(workers.size()) + 1;
                workers.emplace_back([this, thread] { work(thread); });
            }
        } catch (const std::system_error &) {
        } catch (const std::bad_alloc &) {
        }
        const int made = static_cast<int>(workers.size());
        return made < count ? made : count;
    }
};

// A forked child has the pool but not its threads: it makes its own and leaves the parent's alone.
Pool::State *Pool::own_state() {
    std::lock_guard<std::mutex> lock(making_states);
    if (state_ == nullptr || state_->pid != process())
        state_ = new (std::nothrow) State;
    return state_;
}

void Pool::use(kinema_parallel host) {
    host_ = host;
    host_pid_ = process();
}

void Pool::run(int threads, int64_t tasks, Body body, void *data) {
    if (tasks < threads)
        threads = static_cast<int>(tasks);
    // OpenMP's threads do not live on in a forked child, and it would wait for them for ever
    if (threads > 1 && host_ != nullptr && host_pid_ == process()) {
        Shared all{body, data, tasks, threads};
        host_(Shared::enter, &all, static_cast<unsigned>(threads), 0);
        return;
    }
    State *state = threads > 1 ? own_state() : nullptr;
    if (state == nullptr || !state->busy.try_lock()) {
        for (int64_t task = 0; task < tasks; ++task)
            body(data, task, 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->wanted = state->working = state->grow(threads - 1);
        state->body = body;
        state->data = data;
        state->tasks = tasks;
        state->next.store(0);
        ++state->round;
    }
    state->wake.notify_all();
    state->take(0);
    {
        std::unique_lock<std::mutex> lock(state->mutex);
        state->done.wait(lock, [&] { return state->working == 0; });
    }
    state->busy.unlock();
}

Pool::~Pool() {
    if (state_ == nullptr || state_->pid != process())
        return;
    {
        std::lock_guard<std::mutex> lock(state_->mutex);
        state_->closing = true;
    }
    state_->wake.notify_all();
    for (std::thread &worker : state_->workers)
        worker.join();
    delete state_;
}

} // namespace kinema
