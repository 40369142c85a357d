"""A resumable training run: parameters, optimizer and moving average, on disk and back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kinema.errors import RequestError
from kinema.ops import Ops
from kinema.sample.muon import Muon
from kinema.sample.recipe import Schedule
from kinema.sample.uninterrupted import uninterrupted

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")
MEMORIES = ("exp_avg", "exp_avg_sq", "momentum")  # what the optimizers remember of a tensor


def generator_for(*key: int) -> torch.Generator:
    """A generator that depends on nothing but `key` (seed, phase, step, …): a resumed run draws the same numbers."""
    mixed = 0
    for part in key:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def normal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers in fp32, drawn on the CPU."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Numbers of [0, 1) in fp32, drawn on the CPU."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def whole_numbers(low: int, high: int, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Whole numbers from `low` to below `high`, int64, drawn on the CPU."""
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int64, device="cpu")


@lru_cache(maxsize=1)
def bf16_products_are_faster() -> bool:
    """Whether this processor multiplies bf16 matrices at least half again as fast as fp32 ones (best of several)."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(rows, 512, dtype=torch.float32, device="cpu").to(dtype) for rows in (1024, 512))
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
    """One phase of training. A step's randomness comes from its number, so a killed run resumes as if never killed.

    hidden: which tensors, by name, are matrices between hidden layers that Muon should train. AdamW has the rest.
    The state is one file, replaced whole every `save_every` seconds.
    """

    def __init__(
        self,
        path: Path,
        initial: Mapping[str, torch.Tensor],
        schedule: Schedule,
        hidden: Callable[[str], bool] = lambda name: False,
        device: torch.device = CPU,
    ) -> None:
        self.path = path
        self.schedule = schedule
        self.progress = Progress()
        self.device = device
        self.parameters = {name: torch.nn.Parameter(t.to(device, copy=True)) for name, t in initial.items()}
        self.average: Tensors = {name: t.to(device, copy=True) for name, t in initial.items()}
        matrices = [p for name, p in self.parameters.items() if hidden(name)]
        others = [p for name, p in self.parameters.items() if not hidden(name)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, schedule.learning_rate, schedule.betas, weight_decay=0.0, fused=True)
        ]
        if matrices:
            self.optimizers.append(Muon(matrices, schedule.matrix_rate, weight_decay=schedule.weight_decay))
        self._full_rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        if path.exists():
            self._load()

    @property
    def done(self) -> bool:
        return self.progress.step >= self.schedule.steps

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Leave the gradients of a loss in the parameters; returns its value."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def train(
        self,
        learn: Callable[[int], tuple[torch.Tensor, int]],
        *,
        report: Callable[[Progress, dict[str, float]], None],
        evaluate: Callable[[int], dict[str, float]] | None = None,
        report_every: int = 50,
        evaluate_every: int = 500,
        save_every: float = 120.0,
        stop_after: float | None = None,
    ) -> None:
        """Run to the end of the schedule, or for `stop_after` seconds. Whatever else stops it, the state is saved.

        learn(step) leaves the gradients of a step's loss in the parameters and returns the loss and the number of
        samples in it; evaluate(step) gives figures for the curve.
        """
        started = saved = time.monotonic()
        before, recent = self.progress.seconds, []
        while not self.done:
            step = self.progress.step
            try:
                loss, samples = learn(step)
                with uninterrupted():
                    self._update(step)
                    self.progress.step += 1
                    self.progress.samples += samples
                    self.progress.seconds = before + time.monotonic() - started
            except BaseException:
                if self.progress.step:  # ctrl-C, a signal, a full disk elsewhere: the steps so far are whole
                    self.save()
                raise
            recent.append(loss)
            if self.progress.step % report_every == 0 or self.done:
                figures = {"loss": float(torch.stack(recent).mean())}
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

    def _update(self, step: int) -> None:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, full in zip(groups, self._full_rates, strict=True):
            group["lr"] = full * self.schedule.pace(step)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.schedule.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
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
            for optimizer in self.optimizers:
                state = optimizer.state.get(parameter, {})
                tensors |= {f"{key}/{name}": state[key] for key in MEMORIES if key in state}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        progress = {"step": self.progress.step, "seconds": self.progress.seconds, "samples": self.progress.samples}
        save_file(tensors, partial, metadata={"progress": json.dumps({**progress, "curve": self.progress.curve})})
        partial.replace(self.path)

    def _load(self) -> None:
        """Raises RequestError if the file is not the state of a run of these tensors."""
        try:
            self._read()
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise RequestError(
                f"{self.path} is not the state of this run ({' '.join(str(error).split())[:200]}): give another folder "
                "(--runs), or remove it to start afresh"
            ) from error

    def _read(self) -> None:
        with safe_open(self.path, framework="pt") as file:
            saved = set(file.keys())
            for name, parameter in self.parameters.items():
                if (shape := file.get_slice(f"parameter/{name}").get_shape()) != list(parameter.shape):
                    raise ValueError(f"{name} is {shape}, wanted {list(parameter.shape)}")
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(file.get_tensor(f"parameter/{name}"))
                self.average[name] = file.get_tensor(f"average/{name}").to(self.device)
            for optimizer in self.optimizers:
                trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
                for name, parameter in self.parameters.items():
                    kept = [key for key in MEMORIES if f"{key}/{name}" in saved]
                    if id(parameter) in trained and kept:
                        state = {key: file.get_tensor(f"{key}/{name}").to(self.device) for key in kept}
                        if isinstance(optimizer, torch.optim.AdamW):
                            state["step"] = torch.tensor(
                                float(self.progress.step), dtype=torch.float32, device=self.device
                            )
                        optimizer.state[parameter] = state
