"""Whatever a scheduler_config.json says within its limits: a run of finite numbers, or an error of ours, soon."""

from __future__ import annotations

import math
import random
import time
import warnings
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from kinema import schedulers
from kinema.errors import KinemaError
from kinema.fields.config import Range
from kinema.schedulers.loading import _CORES

ODD = [None, True, 0, -1, 3, 10**6, 10**30, 0.0, 0.5, -1.0, 1e-30, 1e308, math.nan, -math.inf, "", "x", [], [0.1], {}]


def drawn(rng: random.Random, hint: Any) -> Any:
    """A value that the annotation allows, at its limits more often than not."""
    limits: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        limits = tuple(rest)
    limit = next((each for each in limits if isinstance(each, Range)), Range(-10, 10))
    low, high = max(limit.low, -(10.0**6)), min(limit.high, 10.0**6)
    if get_origin(hint) is Literal:
        return rng.choice(get_args(hint))
    if hint is bool:
        return rng.random() < 0.3
    if hint is int:
        return rng.choice([int(low), int(high), int(low) + 1, rng.randint(int(low), int(high))])
    if hint is float:
        return rng.choice([low, high, low + (high - low) * rng.random() ** 4, min(high, max(low, rng.random()))])
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    return drawn(rng, rng.choice(arms)) if arms and rng.random() < 0.7 else None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", _CORES)
def test_random_configs(name: str, seed: int) -> None:
    rng = random.Random(f"{name}{seed}")
    hints = get_type_hints(_CORES[name].config_class, include_extras=True)
    hints.pop("use_beta_sigmas", None)  # imports scipy
    ran = 0
    for _ in range(40):
        config: dict[str, Any] = {"_class_name": name, "clip_sample": False}
        if name.startswith(("UniPC", "DPM")) and rng.random() < 0.5:
            config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        for key in rng.choices(list(hints), k=rng.randint(1, 4)):
            config[key] = drawn(rng, hints[key]) if rng.random() < 0.75 else rng.choice(ODD)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                core = schedulers.core_from_config(config)
                dynamic = getattr(core.config, "use_dynamic_shifting", False)
                grid = core.grid(rng.choice([1, 2, 7, 30]), mu=rng.choice([0.5, -2.0]) if dynamic else None)
                state = schedulers.start(core, grid)
            except KinemaError as error:
                assert str(error).isprintable()
            else:
                ran += 1
                assert torch.isfinite(state.tables.float()).all()
                assert torch.isfinite(grid.timesteps.double()).all()
                assert not grid.sigmas.isnan().any()
        assert time.process_time() - start < 5
    assert 0 < ran < 40
