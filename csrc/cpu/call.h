// One call of the interface: where its tasks run, and whether it is to end before they are done.
//
// Nothing here may be inline: a copy that is compiled for one instruction set would serve all of them.
#pragma once

#include <cstdint>

#include "kinema.h"

namespace kinema {

class Pool;

using Body = void (*)(void *data, int64_t task, int thread);

class Call {
  public:
    // control: who may end the call; null: nobody.
    Call(Pool &pool, const kinema_control *control);
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;

    // Calls body(data, task, thread) for every task below `tasks`, with thread below `threads`; returns when all are
    // done or the call is to end, and then does nothing any more. Thread 0 is the caller's.
    void run(int threads, int64_t tasks, Body body, void *data);

    // Whether the call is to end: what is then begun may be left as it is. Asked before every task, and within those
    // that take longer than a few milliseconds; tens of nanoseconds. thread: who asks.
    bool interrupted(int thread);

    // Whether the caller's thread has somebody to ask, and what it asks now and then while it waits for the others.
    bool polls() const;
    void poll_while_waiting();

    int32_t status() const; // KINEMA_OK or KINEMA_INTERRUPTED

  private:
    Pool &pool_;
    const kinema_control *control_;
    bool stopped_ = false; // for all threads
    // of the caller's: milliseconds, when it looked at the clock and when it asks next; looks until it reads the clock
    int64_t last_time_ = 0, next_poll_ = 0;
    int skips_ = 0, skips_left_ = 0;

    bool stop();
    bool due();
};

} // namespace kinema
