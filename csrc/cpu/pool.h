// Threads that wait for work between calls.
//
// torch has threads of its own, which spin for a while after each of its operators; ours sleep, so the two sets do not
// fight for cores while either is idle. The caller is one of the threads. What a task computes does not depend on which
// thread takes it.
#pragma once

#include <cstdint>

namespace kinema {

using Body = void (*)(void *data, int64_t task, int thread);

class Pool {
  public:
    Pool() = default;
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    // Calls body(data, task, thread) for every task below `tasks`, with thread below `threads`; returns when all are
    // done. While another call has the threads, this one runs on its caller's alone.
    void run(int threads, int64_t tasks, Body body, void *data);

  private:
    struct State;
    State *state_ = nullptr;
    State *own_state();
};

} // namespace kinema
