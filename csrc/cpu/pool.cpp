#include "pool.h"

#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "job.h"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace kinema {

namespace {

long current_pid() {
#if defined(_WIN32)
    return 0;
#else
    return static_cast<long>(getpid());
#endif
}

const int PROCESSORS = static_cast<int>(std::thread::hardware_concurrency()); // 0: unknown
const int MAX_THREADS = 4 * (PROCESSORS > 2 ? PROCESSORS : 2);
constexpr int MAX_TEAMS = 8; // of threads that call at the same time

// A run on the host's threads.
struct HostRun {
    Job job;
    bool polls;
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> arrived{0};

    static void enter(void *self) {
        HostRun &all = *static_cast<HostRun *>(self);
        const bool is_caller = std::this_thread::get_id() == all.caller;
        all.job.work(is_caller ? 0 : all.arrived.fetch_add(1) + 1);
        if (is_caller && all.polls) // in the host's barrier it could not poll
            all.job.wait();
    }
};

// The threads of one caller at a time.
class Team {
  public:
    Team() = default;
    ~Team() {
        closing_.store(true);
        for (const auto &worker : workers_) {
            wake(*worker);
            worker->thread.join();
        }
    }
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    bool take() { return !busy_.exchange(true); }
    void give_back() { busy_.store(false); }

    void run(Call &call, int threads, int64_t tasks, Body body, void *data) {
        const int others = ensure_workers(threads - 1);
        job_.begin(call, others + 1, tasks, body, data);
        for (int i = 0; i < others; ++i)
            wake(*workers_[static_cast<size_t>(i)]);
        job_.work(0);
        job_.wait();
    }

  private:
    struct Worker {
        Team &team;
        int number; // the caller is 0
        std::atomic<bool> asleep{false};
        std::mutex mutex;
        std::condition_variable awake;
        std::thread thread; // the last: it uses the others

        Worker(Team &of, int which) : team(of), number(which), thread([this] { work(*this); }) {}
    };

    std::atomic<bool> busy_{false};
    std::atomic<bool> closing_{false};
    Job job_;
    std::vector<std::unique_ptr<Worker>> workers_;

    static bool wanted(const void *data) {
        const Worker &worker = *static_cast<const Worker *>(data);
        return worker.team.job_.offers(worker.number) || worker.team.closing_.load();
    }

    static void work(Worker &self) {
        while (!self.team.closing_.load()) {
            if (self.team.job_.work(self.number) || spin_until(wanted, &self))
                continue;
            std::unique_lock<std::mutex> lock(self.mutex);
            self.asleep.store(true); // before the last look: who opens tasks looks at this afterwards
            self.awake.wait(lock, [&self] { return wanted(&self); });
            self.asleep.store(false);
        }
    }

    static void wake(Worker &worker) {
        if (!worker.asleep.load())
            return;
        {
            const std::lock_guard<std::mutex> lock(worker.mutex);
        }
        worker.awake.notify_one();
    }

    // Starts workers up to `count`; returns how many of them there are.
    int ensure_workers(int count) {
        try {
            workers_.reserve(static_cast<size_t>(count));
            while (static_cast<int>(workers_.size()) < count)
                workers_.push_back(std::make_unique<Worker>(*this, static_cast<int>(workers_.size()) + 1));
        } catch (const std::system_error &) {
        } catch (const std::bad_alloc &) {
        }
        const int made = static_cast<int>(workers_.size());
        return made < count ? made : count;
    }
};

} // namespace

struct Pool::State {
    const long pid = current_pid();
    Team teams[MAX_TEAMS];
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
        HostRun all{{}, call.polls()};
        all.job.begin(call, threads, tasks, body, data);
        host_(HostRun::enter, &all, static_cast<unsigned>(threads), 0);
        return;
    }
    State *state = threads > 1 ? own_state() : nullptr;
    for (int i = 0; state != nullptr && i < MAX_TEAMS; ++i)
        if (state->teams[i].take()) {
            state->teams[i].run(call, threads, tasks, body, data);
            state->teams[i].give_back();
            return;
        }
    for (int64_t task = 0; task < tasks && !call.interrupted(0); ++task)
        body(data, task, 0);
}

Pool::~Pool() {
    State *state = state_.load();
    if (state != nullptr && state->pid == current_pid())
        delete state;
}

} // namespace kinema
