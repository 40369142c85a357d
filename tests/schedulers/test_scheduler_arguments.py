"""A scheduler object is called with what it cannot be: one error that says what was wanted, and no other kind."""

import numpy as np
import pytest
import torch

from kinema import schedulers
from kinema.errors import KinemaError

CONFIG = {
    **{"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
    **{"use_flow_sigmas": True, "flow_shift": 3.0},
}
X = torch.linspace(-1, 1, 128).view(1, 4, 2, 4, 4)


def ready():
    scheduler = schedulers.from_config(CONFIG)
    scheduler.set_timesteps(4)
    return scheduler


STEPS = {
    **{"text": {"num_inference_steps": "5"}, "none": {}, "zero": {"num_inference_steps": 0}},
    **{"true": {"num_inference_steps": True}, "fraction": {"num_inference_steps": 1.5}},
    **{"huge": {"num_inference_steps": 10**30}, "many": {"num_inference_steps": 10**9}},
    **{"device": {"num_inference_steps": 4, "device": "tpu"}, "mu": {"num_inference_steps": 4, "mu": "x"}},
    **{"sigmas of texts": {"sigmas": ["a"]}, "sigmas of nan": {"sigmas": [float("nan"), 0.5]}},
    **{"ragged sigmas": {"sigmas": [[1.0], [0.5, 0.2]]}, "meta sigmas": {"sigmas": torch.ones(3, device="meta")}},
    **{"no sigmas": {"sigmas": []}, "sigmas beyond number": {"sigmas": [10**400]}},
    **{"disagreeing": {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}},
}


@pytest.mark.parametrize("given", STEPS.values(), ids=STEPS.keys())
def test_timesteps(given):
    with pytest.raises(KinemaError) as refused:
        schedulers.from_config(CONFIG).set_timesteps(**given)
    assert "\n" not in str(refused.value)


CALLS = {
    "output=list": {"model_output": [1.0]},
    "output=int": {"model_output": X.long()},
    "output=meta": {"model_output": X.to("meta")},
    "output=complex": {"model_output": X.to(torch.complex64)},
    "output=sparse": {"model_output": X.to_sparse()},
    "output=shape": {"model_output": X[:, :, :1]},
    "sample=None": {"sample": None},
    "sample=int": {"sample": X.int()},
    "noise=shape": {"variance_noise": X[..., :2]},
    "timestep=text": {"timestep": "now"},
    "timestep=None": {"timestep": None},
    "timestep=vector": {"timestep": torch.ones(3)},
    "timestep=off the grid": {"timestep": 3.25},
    "eta=text": {"eta": "a"},
    "eta=nan": {"eta": float("nan")},
    "generator=number": {"generator": 5},
    "generators=mixed": {"generator": [torch.Generator(), None]},
}


@pytest.mark.parametrize("given", CALLS.values(), ids=CALLS.keys())
def test_steps(given):
    scheduler = ready()
    with pytest.raises(KinemaError) as refused:
        scheduler.step(**{"model_output": X, "timestep": scheduler.timesteps[0], "sample": X, **given})
    assert "\n" not in str(refused.value) and scheduler.step_index is None


@pytest.mark.parametrize("timestep", [lambda t: t, lambda t: t.reshape(1), float, lambda t: np.float64(t)])
def test_a_timestep_in_any_form_is_taken(timestep):
    scheduler, plain = ready(), ready()
    given = timestep(scheduler.timesteps[1])
    assert torch.equal(scheduler.step(X, given, X).prev_sample, plain.step(X, plain.timesteps[1], X).prev_sample)


@pytest.mark.parametrize("begin", ["a", -1, 1.0, None, 10**30])
def test_beginnings(begin):
    with pytest.raises(KinemaError):
        ready().set_begin_index(begin)


NOISED = {
    "samples=list": {"original_samples": [1.0]},
    "noise=shape": {"noise": X[:, :2]},
    "noise=None": {"noise": None},
    "timesteps=list": {"timesteps": [1]},
    "timesteps=complex": {"timesteps": torch.ones(1, dtype=torch.complex64)},
}


@pytest.mark.parametrize("given", NOISED.values(), ids=NOISED.keys())
def test_noised_samples(given):
    scheduler = ready()
    with pytest.raises(KinemaError):
        scheduler.add_noise(**{"original_samples": X, "noise": X, "timesteps": scheduler.timesteps[:1], **given})


@pytest.mark.parametrize("config", [None, [1], "unipc", 5, {}, {"_class_name": ["UniPCMultistepScheduler"]}])
def test_configurations(config):
    with pytest.raises(KinemaError):
        schedulers.from_config(config)


@pytest.mark.parametrize("path", [None, 5, b"x", "x" * 5000, "a\0b", "/nowhere"])
def test_paths(path):
    with pytest.raises(KinemaError):
        schedulers.from_pretrained(path)
