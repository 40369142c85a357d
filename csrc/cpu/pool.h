// Threads for one call after another: the host's if it lets us use them, else our own, which sleep between calls.
//
// OpenMP's threads spin for milliseconds after a parallel region and take half of the processor from other threads:
// next to torch a product took up to twice as long. The caller is one of the threads. The result of a task does not
// depend on the thread that runs it.
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

    // As Call::run(), on at most four threads per processor. While another call is using our own threads, this one runs
    // on its caller's alone.
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
