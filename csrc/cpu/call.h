// One call of the interface: where its tasks run, and whether it has been interrupted.
//
// Nothing here may be inline: the linker could keep a copy compiled for one instruction set and use it for all.
#pragma once

#include <cstdint>

#include "kinema.h"

namespace kinema {

class Pool;

using Body = void (*)(void *data, int64_t task, int thread);

class Call {
  public:
    // control: what may interrupt the call; null: nothing.
    Call(Pool &pool, const kinema_control *control);
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;

    // Calls body(data, task, thread) for every task below `tasks`, with thread below `threads`; returns when all are
    // done or, after an interrupt, when running ones have returned. Thread 0 is the caller's.
    void run(int threads, int64_t tasks, Body body, void *data);

    // Whether the call has been interrupted: its results may then stay incomplete. Checked before every task, and
    // within those that take longer than a few milliseconds; costs tens of nanoseconds. thread: the one that asks.
    bool interrupted(int thread);

    // Whether the call has a poll callback, and what calls it while the caller's thread waits for the others.
    bool polls() const;
    void poll_while_waiting();

    int32_t status() const; // KINEMA_OK or KINEMA_INTERRUPTED

  private:
    Pool &pool_;
    const kinema_control *control_;
    bool stopped_ = false; // shared by all threads
    // used by the caller's thread: when it last read the clock and when it polls next, in ms; checks until the next
    // read
    int64_t last_time_ = 0, next_poll_ = 0;
    int skips_ = 0, skips_left_ = 0;

    bool stop();
    bool due();
};

} // namespace kinema
