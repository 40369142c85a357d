"""Schedulers, read from diffusers' scheduler_config.json.

`from_config` and `from_pretrained` give the diffusers-shaped object. The pipeline uses what lies under it: a core
(pure functions of a frozen configuration), `start` for a request's state, and `step` or `step_batch`.
"""

from kinema.schedulers.choice import NAMES, core_of, named, with_flow_shift, with_noise_max_step
from kinema.schedulers.core import Grid, SchedulerCore
from kinema.schedulers.ddim import DDIM, CogVideoXDDIM
from kinema.schedulers.diffusers_scheduler import Scheduler, SchedulerOutput
from kinema.schedulers.dpmsolver import DPMSolverMultistep
from kinema.schedulers.flow_match_euler import FlowMatchEulerDiscrete
from kinema.schedulers.loading import core_from_config, from_config, from_pretrained
from kinema.schedulers.noise import draw_noise
from kinema.schedulers.state import SchedulerState, begin_index, start
from kinema.schedulers.step import add_noise, step, step_batch
from kinema.schedulers.unipc import UniPCMultistep

__all__ = [
    "DDIM",
    "NAMES",
    "CogVideoXDDIM",
    "DPMSolverMultistep",
    "FlowMatchEulerDiscrete",
    "Grid",
    "Scheduler",
    "SchedulerCore",
    "SchedulerOutput",
    "SchedulerState",
    "UniPCMultistep",
    "add_noise",
    "begin_index",
    "core_from_config",
    "core_of",
    "draw_noise",
    "from_config",
    "from_pretrained",
    "named",
    "start",
    "step",
    "step_batch",
    "with_flow_shift",
    "with_noise_max_step",
]
