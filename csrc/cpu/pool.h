// Threads for one call after another: the host's where it hands us a way to use them, else our own, which sleep between
// calls.
//
// OpenMP's threads spin for milliseconds after a parallel region, and take half of the processor from whoever comes
// with threads of its own: beside torch a product took up to twice as long. The caller is one of the threads. What a
// task computes does not depend on which thread takes it.
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

    // What Call::run() says, on at most four threads for each processor. While another call has our own threads,
    // this one runs on its caller's alone.
    void run(Call &call, int threads, int64_t tasks, Body body, void *data);

    // From now on the host's threads do the work; null: our own again. Not while calls run.
    void use(kinema_parallel host);

  private:
    struct State;
    std::atomic<State *> state_{nullptr};
    kinema_parallel host_ = nullptr;
    long host_pid_ = 0;
    State *own_state();
};

} // namespace kinema
