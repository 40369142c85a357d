"""Replacing a model's own scheduler: by an object of kinema's or diffusers', by name, or by another shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kinema.errors import RequestError, shown
from kinema.fields.values import kind, number
from kinema.schedulers.core import SchedulerCore
from kinema.schedulers.diffusers_scheduler import Scheduler
from kinema.schedulers.loading import core_from_config

FLOW_MATCH_EULER = "FlowMatchEulerDiscreteScheduler"
NAMES = {
    "unipc": "UniPCMultistepScheduler",
    "euler": FLOW_MATCH_EULER,
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
}
_SHIFTS = ("flow_shift", "shift")  # the same number, by the names of the solvers and of FlowMatchEuler


def core_of(value: Any) -> SchedulerCore:
    """The core of a kinema scheduler, or of a diffusers one by its configuration. RequestError for anything else."""
    if isinstance(value, Scheduler):
        return value.core
    if isinstance(value, SchedulerCore):
        return value
    config = None if isinstance(value, type) else getattr(value, "config", None)
    if not isinstance(config, Mapping):
        raise RequestError(
            f"scheduler is {kind(value)}: wanted one from kinema.schedulers (from_config, from_pretrained) or from "
            "diffusers"
        )
    return core_from_config({**config, "_class_name": type(value).__name__})


def named(name: str, own: SchedulerCore) -> SchedulerCore:
    """The scheduler of that name for a model that came with `own`: with its shift, and defaults otherwise."""
    class_name = NAMES.get(name.lower(), name)
    if class_name not in NAMES.values():
        fitting = NAMES if flow_shift(own) is None else _of_flows()
        raise RequestError(
            f"there is no scheduler {shown(name)}: wanted {', '.join(fitting)} or a scheduler_config.json"
        )
    if class_name == own.class_name:
        return own
    shift = flow_shift(own)
    if shift is not None and class_name == NAMES["ddim"]:
        raise RequestError(f"{class_name} does no flow matching, as this model needs: wanted {', '.join(_of_flows())}")
    if shift is None:
        raise RequestError(
            f"{class_name} for a model with {own.class_name}: a name is not enough for this change, give a "
            "scheduler_config.json"
        )
    config: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if class_name == FLOW_MATCH_EULER:
        config = {"shift": shift}
    return core_from_config(
        {**config, "_class_name": class_name, "num_train_timesteps": own.config.num_train_timesteps}
    )


def _of_flows() -> list[str]:
    return [name for name in NAMES if name != "ddim"]


def flow_shift(core: SchedulerCore) -> float | None:
    """How far a flow-matching grid is shifted towards high noise; None for other kinds of grids."""
    if not getattr(core.config, "use_flow_sigmas", core.class_name == FLOW_MATCH_EULER):
        return None
    return float(getattr(core.config, _shift_name(core)))


def with_flow_shift(core: SchedulerCore, shift: float) -> SchedulerCore:
    """The same scheduler at another shift."""
    shift = number("flow_shift", shift, 1e-3, 1e3)
    if flow_shift(core) is None:
        raise RequestError(f"flow_shift is for flow matching, which this {core.class_name} does not use: leave it out")
    return type(core)(replace(core.config, **{_shift_name(core): shift}))  # type: ignore[call-arg]


def with_noise_max_step(core: SchedulerCore, step: float) -> SchedulerCore:
    """The same scheduler, whose steps that are longer than `step` in λ = log(α/σ) add no noise."""
    step = number("noise_max_step", step, 0.0, 1e6)
    if not core.has_noise or not hasattr(core.config, "noise_max_step"):
        raise RequestError(
            f"noise_max_step is for DPM-Solver as an SDE, which this {core.class_name} is not: leave it out"
        )
    return type(core)(replace(core.config, noise_max_step=step))  # type: ignore[call-arg]


def _shift_name(core: SchedulerCore) -> str:
    return next(name for name in _SHIFTS if hasattr(core.config, name))
