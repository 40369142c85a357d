"""What every scheduler is: pure functions of a frozen configuration.

A sampler's step is linear in the sample, the model's output, a few tensors it remembers and fresh noise, so a
step is a small table of coefficients. A core computes that table by running the sampler's own algorithm on unit
vectors: each term is a row of the identity [K, K] in float64, so what comes out is the row of coefficients. The
scalars (sigmas, logarithms of signal-to-noise ratios) stay 0-dim tensors of the precision that diffusers uses,
because 1 - sigma near sigma = 1 differs by a per cent between float32 and float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from kinema.errors import CheckpointError, KinemaError, RequestError
from kinema.fields.values import whole

Numbers = Sequence[float] | np.ndarray | torch.Tensor
MAX_STEPS = 10_000  # each step has its coefficients, and no schedule has a tenth as many levels


@dataclass(frozen=True, eq=False)
class Grid:
    """The noise levels of one run, on the CPU.

    timesteps [n]: what the model is fed; int64 (truncated) or fp32, as the diffusers class has them.
    sigmas fp32 [n + 1]: the level before each step and after the last one.
    num_inference_steps: what was asked for; n, except where a class counts its own way.
    """

    timesteps: torch.Tensor
    sigmas: torch.Tensor
    num_inference_steps: int

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Terms:
    """The unit vectors [K] float64 that a step combines; `lines[i][a]` is line i's entry of a + 1 steps ago."""

    sample: torch.Tensor
    model_output: torch.Tensor
    lines: tuple[tuple[torch.Tensor, ...], ...]
    noise: torch.Tensor


class SchedulerCore(ABC):
    """One scheduler with its configuration; immutable, shared by all requests.

    delays: one entry per delay line of remembered tensors, its depth; a step writes one new entry to each line.
    has_noise: the last column of the table belongs to fresh noise.
    """

    class_name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    order: ClassVar[int] = 1
    init_noise_sigma: ClassVar[float] = 1.0
    follows_timestep: ClassVar[bool] = False  # the diffusers object looks each step up, instead of counting
    _knows_eta: ClassVar[bool] = False

    config: Any
    delays: tuple[int, ...] = ()
    has_noise: bool = False

    @property
    def num_terms(self) -> int:
        """K: sample, model output, history, noise."""
        return 2 + sum(self.delays) + int(self.has_noise)

    def grid(
        self,
        num_inference_steps: int | None = None,
        *,
        sigmas: Numbers | None = None,
        timesteps: Numbers | None = None,
        mu: float | None = None,
    ) -> Grid:
        """The grid of `set_timesteps` with these arguments.

        mu: the shift of classes with use_dynamic_shifting (a logarithm where time_shift_type is exponential).
        Raises RequestError for arguments that this class or configuration does not take, or that give no finite levels.
        """
        with np.errstate(all="ignore"):  # what is not finite is refused below
            try:
                grid = self._grid(num_inference_steps, sigmas, timesteps, mu)
            except KinemaError:
                raise
            except (ArithmeticError, ValueError) as error:  # the logarithm of zero or less
                raise self._no_levels() from error
        if not bool(torch.isfinite(grid.timesteps.to(torch.float64)).all() and not grid.sigmas.isnan().any()):
            raise self._no_levels()
        return grid

    @abstractmethod
    def _grid(
        self, num_inference_steps: int | None, sigmas: Numbers | None, timesteps: Numbers | None, mu: float | None
    ) -> Grid:
        """`grid`, before it is known to be finite."""

    def _no_levels(self) -> RequestError:
        return RequestError(
            f"{self.class_name} with this configuration has no finite noise levels: its betas or its shift are extreme"
        )

    @abstractmethod
    def _rows(self, grid: Grid, index: int, begin: int, eta: float, terms: Terms) -> Sequence[torch.Tensor]:
        """[next sample, new entry of each line] of step `index` in a run that began at `begin`."""

    @abstractmethod
    def noising(self, grid: Grid, index: int) -> tuple[float, float]:
        """(a, s) such that a·clean + s·noise is a sample at step `index`'s level."""

    def clean(self, grid: Grid, index: int) -> tuple[float, float]:
        """(a, b) such that a·sample + b·model output is the clean sample that the output of step `index` implies."""
        kind = getattr(self.config, "prediction_type", "flow_prediction")
        signal, noise = self.noising(grid, index)
        if kind == "sample":
            return 0.0, 1.0
        if kind == "v_prediction":
            return signal, -noise
        if kind == "epsilon":
            return (1.0 / signal, -noise / signal) if signal else (math.inf, -math.inf)
        return 1.0, -float(grid.sigmas[index])

    def draws_noise(self, eta: float = 0.0) -> bool:
        """Whether each step draws fresh noise, even if it is multiplied by zero: the generator advances anyway."""
        return self.has_noise

    def without_noise(self) -> SchedulerCore:
        """The deterministic sampler of the same family: to compare runs that would otherwise drift apart by chance."""
        return self

    def result_dtype(self, sample: torch.dtype, model_output: torch.dtype) -> torch.dtype:
        """The dtype that the diffusers class returns."""
        return torch.promote_types(sample, model_output)

    def coefficients(self, grid: Grid, index: int, *, begin: int = 0, eta: float = 0.0) -> torch.Tensor:
        """The table [M, K] float64 of step `index` in a run whose first step was `begin`.

        Columns: sample, model output, each line's entries (newest first), noise if `has_noise`. Rows: the next
        sample, then the new entry of each line. Entries that the run has not written yet have zero columns.
        eta is DDIM's noise share. Raises RequestError if the step has no finite update.
        """
        if not 0 <= begin <= index < len(grid):
            raise RequestError(f"step {index} of a run from {begin} is outside the grid of {len(grid)} steps")
        if eta < 0.0 or (eta > 0.0 and not self._knows_eta):
            wanted = "wanted a number from 0 to 1" if self._knows_eta else f"but {self.class_name} takes no eta"
            raise RequestError(f"eta={eta} was given, {wanted}")
        unit = torch.eye(self.num_terms, dtype=torch.float64, device="cpu")
        lines, at = [], 2
        for depth in self.delays:
            lines.append(tuple(unit[at : at + depth]))
            at += depth
        terms = Terms(unit[0], unit[1], tuple(lines), unit[-1])
        table = torch.stack([row.to(torch.float64) for row in self._rows(grid, index, begin, eta, terms)])
        if not bool(torch.isfinite(table.to(torch.float32)).all()):  # the dtype they are applied in
            raise RequestError(
                f"{self.class_name} with this configuration has no finite update at step {index + 1} of {len(grid)} "
                f"(sigma {float(grid.sigmas[index]):.6g} to {float(grid.sigmas[index + 1]):.6g}); diffusers returns "
                "NaN there. Use another number of steps, or change final_sigmas_type, lower_order_final or solver_type"
            )
        return table

    def _refuse(self, **given: object) -> None:
        """Raise RequestError for given grid arguments that this class does not take."""
        for name, value in given.items():
            if value is not None:
                raise RequestError(f"{name} was given, but {self.class_name} does not take {name} here; leave it out")


def must_be_off(config: Any, *options: str) -> None:
    """CheckpointError for options that no linear update can honour."""
    for option in options:
        value = getattr(config, option)
        if value:
            raise CheckpointError(
                f"{type(config).__name__}: {option}={value!r} is not supported; "
                f"set {option} to false in scheduler_config.json, or use another scheduler"
            )


def count_steps(num_inference_steps: int | None, *custom: Numbers | None) -> int:
    """The number of steps asked for, by number or by the length of custom levels."""
    lengths = {len(values) for values in custom if values is not None}
    if num_inference_steps is not None:
        lengths.add(whole("num_inference_steps", num_inference_steps, high=MAX_STEPS))
    if len(lengths) != 1:
        raise RequestError(
            f"the number of steps must come from num_inference_steps, sigmas or timesteps, and these must agree; "
            f"got {sorted(lengths) if lengths else 'none of them'}"
        )
    (steps,) = lengths
    return whole("the number of sigmas or timesteps", steps, high=MAX_STEPS)
