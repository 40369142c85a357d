#include "job.h"

#include <chrono>

namespace kinema {

namespace {

constexpr std::chrono::microseconds SPIN{50};          // a call of a small model takes about as long
constexpr int PAUSES = 16;                             // between two looks at the clock: about a microsecond
constexpr std::chrono::milliseconds POLL_INTERVAL{20}; // of a sleeping caller that has a poll callback

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

} // namespace

bool spin_until(bool (*ready)(const void *data), const void *data) {
    const auto end = std::chrono::steady_clock::now() + SPIN;
    do
        for (int i = 0; i < PAUSES; ++i) {
            if (ready(data))
                return true;
            pause();
        }
    while (std::chrono::steady_clock::now() < end);
    return false;
}

void Job::begin(Call &call, int threads, int64_t tasks, Body body, void *data) {
    call_ = &call;
    body_ = body;
    data_ = data;
    tasks_ = tasks;
    unfinished_.store(tasks);
    open_.store(static_cast<uint64_t>(threads) << THREADS_SHIFT | static_cast<uint64_t>(tasks));
}

bool Job::offers(int thread) const {
    const uint64_t open = open_.load();
    return (open & COUNT) != 0 && static_cast<uint64_t>(thread) < open >> THREADS_SHIFT;
}

bool Job::take(int thread, int64_t *task) {
    uint64_t open = open_.load();
    while ((open & COUNT) != 0 && static_cast<uint64_t>(thread) < open >> THREADS_SHIFT)
        if (open_.compare_exchange_weak(open, open - 1)) {
            *task = tasks_ - static_cast<int64_t>(open & COUNT);
            return true;
        }
    return false;
}

bool Job::work(int thread) {
    int64_t task, taken = 0;
    for (; take(thread, &task); ++taken) {
        if (call_->interrupted(thread))
            taken += static_cast<int64_t>(open_.exchange(0) & COUNT); // nobody begins those
        else
            body_(data_, task, thread);
    }
    if (taken != 0)
        finish(taken);
    return taken != 0;
}

void Job::finish(int64_t count) {
    if (unfinished_.fetch_sub(count) != count || !asleep_.load())
        return;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
    }
    done_.notify_one();
}

void Job::wait() {
    const auto ended = [](const void *self) { return static_cast<const Job *>(self)->unfinished_.load() == 0; };
    if (spin_until(ended, this))
        return;
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.store(true);
    if (!call_->polls())
        done_.wait(lock, [&] { return ended(this); });
    else
        while (!done_.wait_for(lock, POLL_INTERVAL, [&] { return ended(this); })) {
            lock.unlock();
            call_->poll_while_waiting();
            lock.lock();
        }
    asleep_.store(false);
}

} // namespace kinema
