#include "call.h"

#include <chrono>
#include <ctime>

#include "pool.h"

namespace kinema {

namespace {

// From a clock that takes a few nanoseconds to read and advances every few milliseconds.
int64_t milliseconds() {
#if defined(CLOCK_MONOTONIC_COARSE)
    timespec now;
    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &now) == 0)
        return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
#endif
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(since).count();
}

void nothing(void *, int64_t, int) {}

} // namespace

Call::Call(Pool &pool, const kinema_control *control) : pool_(pool), control_(control) {
    if (polls())
        next_poll_ = milliseconds() + control->interval_ms;
}

void Call::run(int threads, int64_t tasks, Body body, void *data) {
    skips_left_ = 0;
    if (!interrupted(0)) // else each remaining run would wake the threads for nothing
        pool_.run(*this, threads, tasks, control_ != nullptr && control_->skip_tasks != 0 ? nothing : body, data);
}

bool Call::interrupted(int thread) {
    if (control_ == nullptr)
        return false;
    if (__atomic_load_n(&stopped_, __ATOMIC_RELAXED))
        return true;
    for (int64_t i = 0; i < control_->flag_count; ++i)
        if (__atomic_load_n(control_->flags[i], __ATOMIC_RELAXED) != 0)
            return stop();
    if (thread != 0 || control_->poll == nullptr || !due())
        return false;
    if (control_->poll(control_->data) != 0)
        return stop();
    next_poll_ = milliseconds() + control_->interval_ms;
    return false;
}

// Checks that come faster than the clock advances read it less often, down to every eighth time.
bool Call::due() {
    if (skips_left_-- > 0)
        return false;
    const int64_t now = milliseconds();
    skips_ = now != last_time_ || control_->interval_ms == 0 ? 0 : skips_ < 7 ? 2 * skips_ + 1 : 7;
    skips_left_ = skips_;
    last_time_ = now;
    return now >= next_poll_;
}

void Call::poll_while_waiting() {
    skips_left_ = 0;
    interrupted(0);
}

bool Call::polls() const { return control_ != nullptr && control_->poll != nullptr; }

int32_t Call::status() const { return __atomic_load_n(&stopped_, __ATOMIC_RELAXED) ? KINEMA_INTERRUPTED : KINEMA_OK; }

bool Call::stop() {
    __atomic_store_n(&stopped_, true, __ATOMIC_RELAXED);
    return true;
}

} // namespace kinema
