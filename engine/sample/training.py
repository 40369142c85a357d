"""A resumable training run: parameters, optimizer and moving average, on disk and back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kinema.ops import Ops
from kinema.sample.recipe import Schedule

Tensors = dict[str, torch.Tensor]


def generator_for(*key: int) -> torch.Generator:
    """A generator that depends on nothing but `key` (seed, phase, step, …): a resumed run draws what it would have."""
    mixed = 0
    for part in key:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def bf16_products_are_faster() -> bool:
    """Whether this processor multiplies bf16 matrices at least half again as fast as fp32 ones (best of several)."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(1024, 512).to(dtype), torch.randn(512, 512).to(dtype)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] > 1.5 * seconds[torch.bfloat16]


def mixed_precision(ops: Ops, bf16: bool) -> tuple[Ops, AbstractContextManager[object]]:
    """Ops and a context for a forward whose matrix products run in bf16; parameters and everything else stay fp32.

    Attention stays fp32 too: torch's bf16 attention on a CPU has a backward pass many times slower.
    """
    if not bf16:
        return ops, nullcontext()

    def attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", enabled=False):
            return ops.attention(*args, **kwargs)

    return replace(ops, attention=attention), torch.autocast("cpu", dtype=torch.bfloat16)


@dataclass
class Progress:
    """Where a run is: steps done, seconds spent, and the curve of [step, seconds, figures]."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


class Run:
    """One phase of training. A step's randomness comes from its number, so a killed run goes on as if it had not been.

    The state is one file, replaced whole every `save_every` seconds.
    """

    def __init__(self, path: Path, initial: Mapping[str, torch.Tensor], schedule: Schedule) -> None:
        self.path = path
        self.schedule = schedule
        self.progress = Progress()
        self.parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in initial.items()}
        self.average: Tensors = {name: tensor.clone() for name, tensor in initial.items()}
        decayed = [p for p in self.parameters.values() if p.ndim >= 2]
        others = [p for p in self.parameters.values() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=schedule.learning_rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        if path.exists():
            self._load()

    @property
    def done(self) -> bool:
        return self.progress.step >= self.schedule.steps

    def train(
        self,
        loss_of: Callable[[int], tuple[torch.Tensor, int]],
        *,
        report: Callable[[Progress, dict[str, float]], None],
        evaluate: Callable[[int], dict[str, float]] | None = None,
        report_every: int = 50,
        evaluate_every: int = 500,
        save_every: float = 120.0,
        stop_after: float | None = None,
    ) -> None:
        """Run to the end of the schedule, or for `stop_after` seconds.

        loss_of(step) gives the loss and the number of samples in it; evaluate(step) gives figures for the curve.
        """
        started = saved = time.monotonic()
        before, recent = self.progress.seconds, []
        while not self.done:
            step = self.progress.step
            loss, samples = loss_of(step)
            self._update(loss, step)
            self.progress.step += 1
            self.progress.samples += samples
            self.progress.seconds = before + time.monotonic() - started
            recent.append(float(loss.detach()))
            if self.progress.step % report_every == 0 or self.done:
                figures = {"loss": sum(recent) / len(recent)}
                recent = []
                if evaluate is not None and (self.progress.step % evaluate_every == 0 or self.done):
                    figures.update(evaluate(self.progress.step))
                point = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), **figures}
                self.progress.curve.append(point)
                report(self.progress, figures)
            now = time.monotonic()
            stop = stop_after is not None and now - started >= stop_after
            if stop or self.done or now - saved >= save_every:
                self.save()
                saved = now
            if stop:
                return

    def _update(self, loss: torch.Tensor, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), list(self.parameters.values()), 1 - self.schedule.memory(step)
            )

    def save(self) -> None:
        """Replace the state file: a kill at any moment leaves the old one or the new one."""
        tensors: Tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            tensors[f"average/{name}"] = self.average[name]
            state = self.optimizer.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    tensors[f"{key}/{name}"] = state[key]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        progress = {"step": self.progress.step, "seconds": self.progress.seconds, "samples": self.progress.samples}
        save_file(tensors, partial, metadata={"progress": json.dumps({**progress, "curve": self.progress.curve})})
        partial.replace(self.path)

    def _load(self) -> None:
        with safe_open(self.path, framework="pt") as file:
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
            step = torch.tensor(float(self.progress.step))
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(file.get_tensor(f"parameter/{name}"))
                self.average[name] = file.get_tensor(f"average/{name}")
                if f"exp_avg/{name}" in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    self.optimizer.state[parameter] = {
                        "step": step.clone(),
                        "exp_avg": file.get_tensor(f"exp_avg/{name}"),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}"),
                    }
