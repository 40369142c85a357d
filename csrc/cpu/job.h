// The tasks of one parallel run, and who has begun and finished them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "call.h"

namespace kinema {

// Spins for some tens of microseconds; returns whether `ready` came true meanwhile.
bool spin_until(bool (*ready)(const void *data), const void *data);

// One run after another. Threads need not be told of the next: begin() opens its tasks, and whoever takes one takes it
// of the run that is open at that moment.
class Job {
  public:
    // By the caller, once the run before is over: opens the tasks to threads below `threads`.
    void begin(Call &call, int threads, int64_t tasks, Body body, void *data);

    // Whether there is a task for this thread. By any thread at any time.
    bool offers(int thread) const;

    // Runs tasks until none is left to begin; returns whether there were any.
    bool work(int thread);

    // By the caller, after its own work(): blocks until the tasks that others have begun are done.
    void wait();

  private:
    static constexpr int THREADS_SHIFT = 48;
    static constexpr uint64_t COUNT = (uint64_t{1} << THREADS_SHIFT) - 1;

    // Constant from begin() to the end of its last task; only who has taken a task may look.
    Call *call_ = nullptr;
    Body body_ = nullptr;
    void *data_ = nullptr;
    int64_t tasks_ = 0;

    // How many threads may take part, and below it how many tasks nobody has begun. Both in one word: a thread that is
    // late for one run must not take a task of the next if that is for fewer.
    alignas(64) std::atomic<uint64_t> open_{0};
    alignas(64) std::atomic<int64_t> unfinished_{0};
    std::atomic<bool> asleep_{false}; // the caller
    std::mutex mutex_;
    std::condition_variable done_;

    bool take(int thread, int64_t *task);
    void finish(int64_t count);
};

} // namespace kinema
