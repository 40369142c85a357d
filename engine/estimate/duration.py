"""How long a request will take, before any of it is done."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from kinema.caches import foreseen
from kinema.estimate import runs
from kinema.estimate.runs import Run
from kinema.families.base import Model
from kinema.loading.options import LoadOptions
from kinema.memory.predict import weight_bytes
from kinema.ops import Ops
from kinema.ops.common import native
from kinema.ops.common.threads import thread_count
from kinema.request.generation import GenerationRequest
from kinema.request.stats import Stats
from kinema.schedulers import SchedulerCore, begin_index

LOADED_PER_SECOND = 0.5e9  # bytes, where no run is known
SHARE_OF_PROBE = 0.5  # of a product's FLOPs a second that a whole stage reaches, where no run is known


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage. runs: of this model on this machine that they rest on; 0: a guess by its speed alone.

    missing: stages whose work the model does not know.
    """

    seconds: dict[str, float]
    runs: int
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> float | None:
        """None if a stage is missing."""
        return None if self.missing else sum(self.seconds.values())

    def __str__(self) -> str:
        if self.total is None:
            return f"of unknown time (nothing is known of {', '.join(self.missing)})"
        basis = f"by {self.runs} run{'s' * (self.runs > 1)} of this model here" if self.runs else "a first guess"
        return f"about {_spoken(self.total)}, {basis}"


class RequestTime:
    """The work of one request, and what is known of it on this machine."""

    def __init__(
        self, model: Model, ops: Ops, options: LoadOptions, request: GenerationRequest, sampler: SchedulerCore
    ) -> None:
        """request: a completed one, whose frames will be streamed into a file."""
        grid = sampler.grid(request.num_inference_steps)
        begin = 0 if request.strength is None else begin_index(len(grid), request.strength)
        steps: float = len(grid) - begin
        if request.cache is not None:
            steps *= foreseen(request.cache, sampler, grid, begin, 1 + request.guided)
        self._steps = len(grid) - begin, steps
        stages = model.work(request, ops.plan, streamed=True, graphs=options.cuda_graphs)
        self.work: dict[str, float] = {"load": float(sum(weight_bytes(model, ops.plan).values()))}
        for stage, work in stages.items():
            self.work[stage] = float(work.flops * (steps if stage == "denoise" else 1))
        self.ops = ops
        self.kind = _kind(ops, options)
        configs = sorted((name, str(config)) for name, config in model.configs.items())
        self.model = hashlib.sha256(repr(configs).encode()).hexdigest()[:16]

    def estimate(self) -> Estimate:
        known = [run for run in runs.read() if run.kind == self.kind]
        seconds, counts, missing = {}, [], []
        for stage, work in self.work.items():
            alike = [run for run in known if run.stage == stage]
            own = [run for run in alike if run.model == self.model]
            counts.append(len(own))
            if work == 0:
                missing.append(stage)
            else:
                rate = partial(self._rate, stage)
                seconds[stage] = runs.seconds_for(work, own or alike, rate) if alike else work / rate()
        return Estimate(seconds, min(counts), tuple(missing))

    def remember(self, stats: Stats) -> None:
        """What the request took in the end; nothing of one that was interrupted."""
        if not stats.interrupted:
            asked, made = self._steps
            share = 1.0 if stats.cache is None else asked * (1.0 - stats.cache.saved) / made
            done = {**self.work, "denoise": self.work.get("denoise", 0.0) * share}
            taken: Mapping[str, float] = {_stage(name): seconds for name, seconds in stats.seconds.items()}
            runs.remember(
                Run(self.kind, self.model, stage, work, taken[stage]) for stage, work in done.items() if stage in taken
            )

    def _rate(self, stage: str) -> float:
        """Work a second, where no run is known."""
        return LOADED_PER_SECOND if stage == "load" else SHARE_OF_PROBE * self._flops_per_second

    @cached_property
    def _flops_per_second(self) -> float:
        """Of a matrix product that takes a millisecond or two."""
        rows, width, best = 512, 1024, float("inf")
        x = torch.ones(1, rows, width, dtype=self.ops.dtype, device=self.ops.device)
        weight = self.ops.pack_linear(torch.ones(width, width, dtype=torch.float32, device=self.ops.device))
        for _ in range(3):
            start = time.perf_counter()
            float(self.ops.linear(x, weight)[0, 0, 0])  # waits for a GPU
            best = min(best, time.perf_counter() - start)
        return 2 * rows * width**2 / best


def _stage(name: str) -> str:
    """As predictions name it."""
    return "decode" if name == "decode and write" else name


def _kind(ops: Ops, options: LoadOptions) -> str:
    """What decides, beside the model and the clip, how fast a run is."""
    device = ops.device
    chosen = " ".join(f"{choice.op}={choice.backend}" for choice in ops.plan.choices)
    if device.type == "cpu":
        chosen += f", {options.threads or thread_count()} threads, {native.described().partition(';')[0]}"
    attention = f" attention {ops.plan.quantize_attention}" if ops.plan.quantize_attention else ""
    return f"{runs.machine(device)}, {ops.plan.target.precision.name}{attention}, {chosen}"


def _spoken(seconds: float) -> str:
    units = (("s", 1.0, 90.0), ("minutes", 60.0, 90.0), ("hours", 3600.0, 72.0), ("days", 86400.0, float("inf")))
    unit, size, _ = next(each for each in units if seconds < each[1] * each[2])
    return f"{float(f'{seconds / size:.2g}'):,g} {unit}"
