// Threads for one call after another: our own, or those that the host lends.
//
// Tasks are handed out one by one to whoever comes for them, and the caller is one of the threads. So a thread whose
// core another program has taken delays a call by the task that it has begun and by nothing else: the rest is done
// without it. Waiting threads spin for some tens of microseconds, since the next call is usually that near, and then
// sleep. (OpenMP's meet at barriers, all of them, and spin for milliseconds: beside one busy program a call took four
// times as long.) The result of a task does not depend on the thread that runs it.
#pragma once

#include <atomic>
#include <cstdint>

#include "call.h"
#include "kinema.h"

namespace kinema {

class Pool {
  public:
    Pool() = default;
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    // As Call::run(), on at most four threads per processor. Calls at the same time have threads of their own each, up
    // to eight of them; a ninth runs on its caller's alone.
    void run(Call &call, int threads, int64_t tasks, Body body, void *data);

    // Uses the host's threads from now on; null: our own again. Not while calls run.
    void use(kinema_parallel host);

  private:
    struct State;
    std::atomic<State *> state_{nullptr};
    kinema_parallel host_ = nullptr;
    long host_pid_ = 0;
    State *own_state();
};

} // namespace kinema
