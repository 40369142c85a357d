#include "pool.h"

#include <chrono>
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

constexpr int MAX_YIELDS = 100;                        // before a waiting caller sleeps: some tens of microseconds
constexpr std::chrono::milliseconds POLL_INTERVAL{20}; // of a sleeping caller that has a poll callback

long current_pid() {
#if defined(_WIN32)
    return 0;
#else
    return static_cast<long>(getpid());
#endif
}

const int PROCESSORS = static_cast<int>(std::thread::hardware_concurrency()); // 0: unknown
const int MAX_THREADS = 4 * (PROCESSORS > 2 ? PROCESSORS : 2);

// The tasks of a run, shared by its threads.
struct Job {
    Call *call = nullptr;
    Body body = nullptr;
    void *data = nullptr;
    int64_t tasks = 0;
    std::atomic<int64_t> next{0};
    std::atomic<int> active_workers{0}; // threads other than the caller's that may be running a task
    std::mutex mutex;
    std::condition_variable done;

    void begin(Call &of, int64_t count, Body what, void *with) {
        call = &of;
        tasks = count;
        body = what;
        data = with;
        next.store(0);
    }

    void run_tasks(int thread) {
        while (!call->interrupted(thread)) {
            const int64_t task = next.fetch_add(1);
            if (task >= tasks)
                return;
            body(data, task, thread);
        }
    }

    void leave() {
        if (active_workers.fetch_sub(1) != 1)
            return;
        const std::lock_guard<std::mutex> lock(mutex);
        done.notify_one();
    }

    // Blocks the caller, which has no task left, until the other threads are done.
    void wait() {
        for (int i = 0; i < MAX_YIELDS && active_workers.load() != 0; ++i)
            std::this_thread::yield();
        if (active_workers.load() == 0)
            return;
        std::unique_lock<std::mutex> lock(mutex);
        const auto ended = [this] { return active_workers.load() == 0; };
        if (!call->polls())
            return done.wait(lock, ended);
        while (!done.wait_for(lock, POLL_INTERVAL, ended)) {
            lock.unlock();
            call->poll_while_waiting();
            lock.lock();
        }
    }
};

// A run on the host's threads.
struct HostRun {
    Job job;
    int threads;
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> arrived{0};

    static void enter(void *self) {
        HostRun &all = *static_cast<HostRun *>(self);
        if (std::this_thread::get_id() == all.caller) {
            all.job.run_tasks(0);
            if (all.job.call->polls()) // in the host's barrier it could not poll
                all.job.wait();
            return;
        }
        const int thread = all.arrived.fetch_add(1) + 1;
        if (thread >= all.threads)
            return;
        all.job.active_workers.fetch_add(1);
        all.job.run_tasks(thread);
        all.job.leave();
    }
};

} // namespace

struct Pool::State {
    const long pid = current_pid();
    std::atomic<bool> busy{false}; // a call is using the threads
    Job job;
    std::mutex mutex; // guards what follows
    std::condition_variable wake;
    std::vector<std::thread> workers;
    bool closing = false;
    uint64_t round = 0; // incremented for every run
    int wanted = 0;     // workers taking part in this round

    void work(int thread) {
        uint64_t last_round = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return closing || (round != last_round && thread <= wanted); });
            if (closing)
                return;
            last_round = round;
            lock.unlock();
            job.run_tasks(thread);
            job.leave();
            lock.lock();
        }
    }

    // Starts workers up to `count`; returns how many of them there are.
    int ensure_workers(int count) {
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

    void run(Call &call, int threads, int64_t tasks, Body body, void *data) {
        job.begin(call, tasks, body, data);
        {
            const std::lock_guard<std::mutex> lock(mutex);
            wanted = ensure_workers(threads - 1);
            job.active_workers.store(wanted);
            ++round;
        }
        wake.notify_all();
        job.run_tasks(0);
        job.wait();
    }
};

// A forked child has the pool but not its threads: it creates its own and leaves the parent's alone. No lock is left
// that a thread of the parent could hold forever.
Pool::State *Pool::own_state() {
    State *found = state_.load();
    while (found == nullptr || found->pid != current_pid()) {
        State *made = new (std::nothrow) State;
        if (made == nullptr)
            return nullptr;
        if (state_.compare_exchange_strong(found, made))
            return made;
        delete made; // another caller was faster
    }
    return found;
}

void Pool::use(kinema_parallel host) {
    host_ = host;
    host_pid_ = current_pid();
}

void Pool::run(Call &call, int threads, int64_t tasks, Body body, void *data) {
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (tasks < threads)
        threads = static_cast<int>(tasks);
    // OpenMP's threads do not survive a fork, and a child would wait for them forever
    if (threads > 1 && host_ != nullptr && host_pid_ == current_pid()) {
        HostRun all{{}, threads};
        all.job.begin(call, tasks, body, data);
        host_(HostRun::enter, &all, static_cast<unsigned>(threads), 0);
        return;
    }
    State *state = threads > 1 ? own_state() : nullptr;
    if (state != nullptr && !state->busy.exchange(true)) {
        state->run(call, threads, tasks, body, data);
        state->busy.store(false);
        return;
    }
    Job alone;
    alone.begin(call, tasks, body, data);
    alone.run_tasks(0);
}

Pool::~Pool() {
    State *state = state_.load();
    if (state == nullptr || state->pid != current_pid())
        return;
    {
        const std::lock_guard<std::mutex> lock(state->mutex);
        state->closing = true;
    }
    state->wake.notify_all();
    for (std::thread &worker : state->workers)
        worker.join();
    delete state;
}

} // namespace kinema
