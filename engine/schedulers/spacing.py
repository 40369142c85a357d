"""Where a run's noise levels lie: spacings of timesteps and of sigmas, and shifts of flow-matching grids.

The arithmetic is numpy's, in the dtype of the input, in diffusers' order: grids agree bit for bit.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Annotated, Literal

import numpy as np
import torch

from kinema.errors import CheckpointError, RequestError, shown
from kinema.fields.config import Range
from kinema.schedulers.core import Numbers

Flag = bool | None  # null was the default in earlier versions
Shift = Annotated[float, Range(1e-3, 1000)]
VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
ShiftTerminal = Annotated[float, Range(0, 0.999)]


def as_array(values: Numbers) -> np.ndarray:
    """A copy as a numpy array: in its own float dtype from a numpy array, fp64 from anything else."""
    try:
        array = np.asarray(values.tolist() if isinstance(values, torch.Tensor) else values)
        array = np.array(array, dtype=array.dtype if array.dtype.kind == "f" else np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # no numbers, lists of several lengths, no values
        array = np.zeros(())
    if array.ndim != 1 or not np.isfinite(array).all():
        raise RequestError(f"sigmas and timesteps must be finite numbers in one dimension, got {shown(values)}")
    return array


def trailing_timesteps(last: int, train_steps: int, steps: int) -> np.ndarray:
    """int64 [≤ steps]: from `last` down by train_steps / steps, minus one.

    For some numbers of steps (61, 103, …) rounding gives diffusers one more entry, -1; it is left out here.
    """
    spaced: np.ndarray = np.arange(last, 0, -(train_steps / steps)).round().astype(np.int64)[:steps] - 1
    return spaced


def shifted(shift: float, sigmas: np.ndarray) -> np.ndarray:
    """Static shift: s·σ / (1 + (s - 1)·σ)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def dynamically_shifted(kind: str, mu: float, sigmas: np.ndarray) -> np.ndarray:
    """The shift of use_dynamic_shifting, by time_shift_type: factor e^mu ("exponential") or mu ("linear")."""
    factor = math.exp(mu) if kind == "exponential" else mu
    return factor / (factor + (1 / sigmas - 1))


def stretched_to(terminal: float, sigmas: np.ndarray) -> np.ndarray:
    """1 - σ scaled so that the last sigma is `terminal`."""
    rest: np.ndarray = 1 - sigmas
    if rest[-1] == 0:
        raise RequestError(
            f"shift_terminal={terminal} cannot be met by a grid whose last sigma is 1 ({len(sigmas)} step(s)); "
            "use more steps"
        )
    stretched: np.ndarray = 1 - rest / (rest[-1] / (1 - terminal))
    return stretched


def karras(low: float, high: float, steps: int) -> np.ndarray:
    """Sigmas from `high` to `low`, even in σ^(1/7) (Karras et al. 2022, arXiv 2206.00364)."""
    rho = 7.0
    ramp: np.ndarray = np.linspace(0, 1, steps)
    end, start = low ** (1 / rho), high ** (1 / rho)
    sigmas: np.ndarray = (start + ramp * (end - start)) ** rho
    return sigmas


def exponential(low: float, high: float, steps: int) -> np.ndarray:
    """Sigmas from `high` to `low`, even in log σ."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta(low: float, high: float, steps: int) -> np.ndarray:
    """Sigmas from `high` to `low` at quantiles of Beta(0.6, 0.6) (arXiv 2407.12173); needs scipy."""
    try:
        ppf = import_module("scipy.stats").beta.ppf
    except ModuleNotFoundError as error:
        raise RequestError("use_beta_sigmas needs scipy, which is not installed: pip install scipy") from error
    return np.array([low + ppf(q, 0.6, 0.6) * (high - low) for q in 1 - np.linspace(0, 1, steps)])


CONVERSIONS = {"use_karras_sigmas": karras, "use_exponential_sigmas": exponential, "use_beta_sigmas": beta}


def conversion_of(config: object) -> str | None:
    """Which of CONVERSIONS the configuration asks for; CheckpointError if it is more than one."""
    wanted = [name for name in CONVERSIONS if getattr(config, name)]
    if len(wanted) > 1:
        raise CheckpointError(f"{type(config).__name__}: {' and '.join(wanted)} exclude each other; keep one")
    return wanted[0] if wanted else None


def sigma_to_timestep(sigma: np.floating, log_sigmas: np.ndarray) -> float:
    """The fractional training timestep of `sigma`, by interpolation in log_sigmas [T] (ascending)."""
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    below = np.flatnonzero(log_sigma - log_sigmas >= 0)
    low = min(int(below[-1]) if len(below) else 0, len(log_sigmas) - 2)
    weight = (log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1])
    weight = np.clip(weight, 0, 1)
    return float((1 - weight) * low + weight * (low + 1))
