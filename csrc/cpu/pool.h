// Threads for one call after another: the host's where it hands us a way to use them, else our own, which sleep between
// calls.
//
// OpenMP's threads spin for milliseconds after a parallel region, and take half of the processor from whoever comes
// with threads of its own: beside torch a product took up to twice as long. The caller is one of the threads. What a
// task computes does not depend on which thread takes it.
#pragma once

#include <cstdint>

#include "kinema.h"

namespace kinema {

using Body = void (*)(void *data, int64_t task, int thread);

class Pool {
  public:
    Pool() = default;
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    // Calls body(data, task, thread) for every task below `tasks`, with thread below `threads`; returns when all are
    // done. While another call has our own threads, this one runs on its caller's alone.
    void run(int threads, int64_t tasks, Body body, void *data);

    // From now on the host's threads do the work; null: our own again. Not while calls run.
    void use(kinema_parallel host);

  private:
    struct State;
    State *state_ = nullptr;
    kinema_parallel host_ = nullptr;
    long host_pid_ = 0;
    State *own_state();
};

} // namespace kinema
