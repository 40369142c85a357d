// Programs: calls with their arguments, run one after the other by a single call.
#include "checks.h"
#include "table.h"

#include <new>
#include <vector>

namespace kinema {

namespace {

using Op = int32_t (*)(const kinema_cpu *cpu, const void *args, const kinema_control *control);

template <class Args, int32_t (*function)(const kinema_cpu *, const Args *, const kinema_control *)>
int32_t op(const kinema_cpu *cpu, const void *args, const kinema_control *control) {
    return function(cpu, static_cast<const Args *>(args), control);
}

// In the order of kinema_op.
constexpr Op ops[] = {
    op<kinema_linear_args, kinema_linear>,
    op<kinema_norm_modulate_args, kinema_norm_modulate>,
    op<kinema_qk_norm_rope_args, kinema_qk_norm_rope>,
    op<kinema_attention_args, kinema_attention>,
    op<kinema_patch_embed_args, kinema_patch_embed>,
    op<kinema_unpatchify_args, kinema_unpatchify>,
    op<kinema_conv3d_args, kinema_conv3d>,
    op<kinema_scheduler_step_args, kinema_scheduler_step>,
};
constexpr int32_t op_count = sizeof(ops) / sizeof(*ops);

} // namespace

} // namespace kinema

struct kinema_program {
    struct Step {
        kinema::Op op;
        const void *args;
    };
    const kinema_cpu *cpu;
    std::vector<Step> steps;
};

using namespace kinema;

extern "C" {

int32_t kinema_program_create(const kinema_cpu *cpu, kinema_program **made) {
    if (cpu == nullptr || made == nullptr)
        return KINEMA_NO_POINTER;
    *made = new (std::nothrow) kinema_program{cpu, {}};
    return *made != nullptr ? KINEMA_OK : KINEMA_NO_MEMORY;
}

void kinema_program_destroy(kinema_program *program) { delete program; }

int32_t kinema_program_append(kinema_program *program, int32_t op, const void *args) {
    if (program == nullptr || args == nullptr)
        return KINEMA_NO_POINTER;
    if (op < 0 || op >= op_count)
        return KINEMA_BAD_OPTION;
    try {
        program->steps.push_back({ops[op], args});
    } catch (const std::bad_alloc &) {
        return KINEMA_NO_MEMORY;
    }
    return KINEMA_OK;
}

int32_t kinema_program_run(const kinema_program *program, const kinema_control *control) {
    if (program == nullptr)
        return KINEMA_NO_POINTER;
    const int32_t status = check_control(control);
    if (status != KINEMA_OK)
        return status;
    // The calls of a program may each be too short to ask anybody: this one asks between them.
    Call between(program->cpu->pool, control);
    for (const kinema_program::Step &step : program->steps) {
        if (between.interrupted(0))
            return KINEMA_INTERRUPTED;
        const int32_t done = step.op(program->cpu, step.args, control);
        if (done != KINEMA_OK)
            return done;
    }
    return between.interrupted(0) ? KINEMA_INTERRUPTED : KINEMA_OK;
}

} // extern "C"
