"""Published scheduler_config.json contents, the diffusers-shaped object, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from kinema import schedulers
from kinema.errors import CheckpointError, RequestError

_UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
_WAN22 = {
    **_UNIPC,
    "_diffusers_version": "0.35.0.dev0",
    "shift_terminal": None,
    "sigma_max": None,
    "sigma_min": None,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": False,
}
_EULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.32.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 7.0,
    "shift_terminal": None,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
_COG = {
    "_class_name": "CogVideoXDDIMScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (scheduler_config.json, arguments of set_timesteps as its pipeline passes them)
    "wan2.1-t2v-1.3b": (_UNIPC, {"num_inference_steps": 50}),
    "wan2.1-t2v-14b-720p": ({**_UNIPC, "flow_shift": 5.0}, {"num_inference_steps": 50}),
    "wan2.2-t2v-a14b": (_WAN22, {"num_inference_steps": 40}),
    "wan2.2-ti2v-5b": ({**_WAN22, "flow_shift": 5.0}, {"num_inference_steps": 50}),
    "ltx-video": (
        {
            **_EULER,
            "base_image_seq_len": 1024,
            "base_shift": 0.95,
            "max_shift": 2.05,
            "shift": 1.0,
            "shift_terminal": 0.1,
            "use_dynamic_shifting": True,
        },
        {"sigmas": np.linspace(1.0, 1 / 50, 50), "mu": 1.8},
    ),
    "hunyuan-video": (_EULER, {"sigmas": np.linspace(1.0, 0.0, 51)[:-1]}),
    "cogvideox-2b": (_COG, {"num_inference_steps": 50}),
    "cogvideox-5b": ({**_COG, "snr_shift_scale": 1.0}, {"num_inference_steps": 50}),
}


def x0_like(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return sample - torch.tanh(sample.roll(1, -1) + 0.001 * timestep)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str, tmp_path: Path) -> None:
    """Read from a model folder, stepped against diffusers, and taken back from their own `.config`."""
    config, arguments = PUBLISHED[name]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    ours = schedulers.from_pretrained(tmp_path)
    theirs = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path / "scheduler")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(**arguments)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    a = b = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    for t in ours.timesteps:
        a = ours.step(x0_like(a, t), t, a).prev_sample
        (b,) = theirs.step(x0_like(b, t), t, b, return_dict=False)[:1]
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()

    for option, value in config.items():
        if option != "_diffusers_version":
            assert ours.config[option] == (tuple(value) if isinstance(value, list) else value)
    again = schedulers.from_config(ours.config)
    assert again.config == ours.config
    assert again.core.config == ours.core.config
    assert schedulers.from_pretrained(tmp_path / "scheduler").config == ours.config
    assert schedulers.from_pretrained(tmp_path / "scheduler" / "scheduler_config.json").config == ours.config


def test_ltx_mu_is_the_pipelines() -> None:
    from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

    core = schedulers.from_config(PUBLISHED["ltx-video"][0]).core
    assert isinstance(core, schedulers.FlowMatchEulerDiscrete)
    for tokens in (77, 1024, 2250, 9000):
        assert core.dynamic_shift(tokens) == calculate_shift(tokens, 1024, 4096, 0.95, 2.05)


UNIPC, DPM = "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"
EULER, DDIM = "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ({"_class_name": "os.system"}, "os.system"),
        ({"_class_name": ["UniPCMultistepScheduler"]}, "_class_name"),
        ({}, "_class_name"),
        ({"_class_name": UNIPC, "thresholding": True}, "thresholding"),
        ({"_class_name": UNIPC, "solver_p": {"a": 1}}, "solver_p"),
        ({"_class_name": UNIPC, "solver_type": "bh3"}, "bh3"),
        ({"_class_name": UNIPC, "solver_order": 4}, "solver_order"),
        ({"_class_name": UNIPC, "prediction_type": "x"}, "prediction_type"),
        ({"_class_name": UNIPC, "prediction_type": "flow_prediction", "predict_x0": False}, "flow_prediction"),
        ({"_class_name": UNIPC, "shift_terminal": 0.1}, "shift_terminal"),
        ({"_class_name": UNIPC, "final_sigmas_type": "one"}, "final_sigmas_type"),
        ({"_class_name": UNIPC, "timestep_spacing": "even"}, "timestep_spacing"),
        ({"_class_name": UNIPC, "beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"_class_name": UNIPC, "trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"_class_name": UNIPC, "use_karras_sigmas": True, "use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"_class_name": DPM, "variance_type": "learned"}, "variance_type"),
        ({"_class_name": DPM, "algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ({"_class_name": DPM, "algorithm_type": "ode"}, "algorithm_type"),
        (
            {
                "_class_name": DPM,
                "algorithm_type": "sde-dpmsolver",
                "solver_order": 3,
                "final_sigmas_type": "sigma_min",
            },
            "third order",
        ),
        ({"_class_name": EULER, "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": EULER, "time_shift_type": "cubic"}, "time_shift_type"),
        ({"_class_name": DDIM}, "clip_sample"),
        ({"_class_name": DDIM, "clip_sample": False, "thresholding": True}, "thresholding"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        schedulers.from_config(config)


@pytest.mark.parametrize(
    ("config", "arguments", "named"),
    [
        ({"_class_name": UNIPC}, {}, "num_inference_steps"),
        ({"_class_name": UNIPC}, {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"_class_name": UNIPC}, {"num_inference_steps": 4, "timesteps": [5, 4, 3, 2]}, "timesteps"),
        ({"_class_name": UNIPC}, {"sigmas": [1.0, 0.5]}, "use_flow_sigmas"),
        ({"_class_name": UNIPC, "use_dynamic_shifting": True}, {"num_inference_steps": 4}, "mu"),
        ({"_class_name": UNIPC}, {"num_inference_steps": 4, "mu": 1.0}, "mu"),
        ({"_class_name": DPM}, {"num_inference_steps": 4, "mu": 1.0}, "mu"),
        ({"_class_name": DPM}, {"sigmas": [0.5]}, "sigmas"),
        ({"_class_name": DPM, "use_karras_sigmas": True}, {"timesteps": [5, 2]}, "timesteps"),
        ({"_class_name": DPM}, {"timesteps": [1200, 5, 2]}, "1200"),
        ({"_class_name": EULER}, {"num_inference_steps": 3, "sigmas": [0.5, 0.2]}, r"\[2, 3\]"),
        ({"_class_name": EULER}, {"sigmas": [0.5, float("nan")]}, "finite"),
        ({"_class_name": EULER, "use_dynamic_shifting": True}, {"num_inference_steps": 4}, "mu"),
        ({"_class_name": DDIM, "clip_sample": False}, {"num_inference_steps": 1001}, "1001"),
        ({"_class_name": DDIM, "clip_sample": False}, {"sigmas": [1.0]}, "sigmas"),
        ({"_class_name": DDIM, "clip_sample": False, "steps_offset": 1}, {"num_inference_steps": 1000}, "steps_offset"),
    ],
)
def test_bad_grid_arguments_are_refused(config: dict[str, Any], arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        schedulers.from_config(config).set_timesteps(**arguments)


@pytest.mark.parametrize(
    "config",
    [
        # diffusers returns NaN for each of these on its last step, or on its first
        {"_class_name": UNIPC, "lower_order_final": False},
        {"_class_name": UNIPC, "predict_x0": False},
        {"_class_name": DDIM, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
)
def test_steps_without_a_finite_update_are_refused_before_the_run(config: dict[str, Any]) -> None:
    core = schedulers.core_from_config(config)
    with pytest.raises(RequestError, match="no finite update"):
        schedulers.start(core, core.grid(20))


def test_bh1_reaches_sigma_zero() -> None:
    """diffusers multiplies an infinite B(h) by an absent term there; the update's limit is the predicted x0."""
    core = schedulers.core_from_config({"_class_name": UNIPC, "solver_type": "bh1"})
    following, _, converted = schedulers.start(core, core.grid(20)).tables[-1]
    assert (following - converted).abs().max() <= 1e-5 * converted.abs().max()


@pytest.mark.parametrize(
    ("text", "named"),
    [("{", "not valid JSON"), ("[1]", "wanted an object"), ("\x00", "not valid JSON"), (None, "found no")],
)
def test_bad_files_are_refused(tmp_path: Path, text: str | None, named: str) -> None:
    if text is not None:
        (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=named):
        schedulers.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("class_name", [UNIPC, DPM, EULER, DDIM])
def test_facade_returns_diffusers_dtype(class_name: str, dtype: torch.dtype, output_dtype: torch.dtype) -> None:
    options = {"clip_sample": False} if class_name == DDIM else {}
    results = []
    for scheduler in (
        getattr(diffusers, class_name)(**options),
        schedulers.from_config({"_class_name": class_name, **options}),
    ):
        scheduler.set_timesteps(4)
        sample = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        output = sample.roll(1, -1).to(output_dtype)
        results.append(scheduler.step(output, scheduler.timesteps[0], sample))
    theirs, ours = results
    assert ours.prev_sample.dtype == theirs.prev_sample.dtype
    assert ours[0] is ours.prev_sample


def test_facade_shape() -> None:
    ours = schedulers.from_config(_UNIPC)
    assert (ours.order, ours.init_noise_sigma, len(ours)) == (1, 1.0, 1000)
    assert ours.config.flow_shift == 3.0
    assert ours.config.get("base_shift", 0.5) == 0.5
    with pytest.raises(AttributeError, match="nothing"):
        _ = ours.config.nothing
    for use in (lambda: ours.timesteps, lambda: ours.sigmas, lambda: ours.step(torch.ones(1), 1, torch.ones(1))):
        with pytest.raises(RequestError, match="set_timesteps"):
            use()
    ours.set_timesteps(4, "cpu")
    x = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    assert ours.scale_model_input(x, ours.timesteps[0]) is x
    assert ours.step_index is None
    assert isinstance(ours.step(x, ours.timesteps[0], x, return_dict=False), tuple)
    assert ours.step_index == 1
    with pytest.raises(RequestError, match="not on this scheduler's grid"):
        ours.add_noise(x, x, torch.tensor([3.3]))
    ours.set_timesteps(4)
    assert ours.step_index is None
    with pytest.raises(RequestError, match=r"12\.5 is not on"):
        ours.step(x, 12.5, x)


def test_facade_starts_where_the_timestep_says() -> None:
    """diffusers' pipelines pass a slice of `.timesteps`, mostly without a begin index."""
    theirs, ours = diffusers.UniPCMultistepScheduler.from_config(_UNIPC), schedulers.from_config(_UNIPC)
    noise, clean = torch.randn(2, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
        x = scheduler.add_noise(clean, noise, scheduler.timesteps[8:9].repeat(2))
        for t in scheduler.timesteps[8:]:
            x = scheduler.step(x0_like(x, t), t, x, return_dict=False)[0]
        results.append(x)
    assert (results[1] - results[0]).abs().max() <= 1e-5 * results[0].abs().max()


def test_equal_timesteps_need_a_begin_index() -> None:
    """With a large shift and many steps, truncation makes neighbouring timesteps equal."""
    ours = schedulers.from_config({**_UNIPC, "flow_shift": 12.0})
    ours.set_timesteps(400)
    twice = next(i for i in range(2, 399) if ours.timesteps[i] == ours.timesteps[i + 1] != ours.timesteps[0])
    x = torch.ones(1, 2, 3)
    with pytest.raises(RequestError, match="set_begin_index"):
        ours.step(x, ours.timesteps[twice + 1], x)
    ours.set_begin_index(twice + 1)
    ours.step(x, ours.timesteps[twice + 1], x)
    assert ours.step_index == twice + 2


def test_ddim_facade_runs_again_without_new_timesteps() -> None:
    ours = schedulers.from_config({"_class_name": DDIM, "clip_sample": False})
    ours.set_timesteps(5)
    runs = []
    for _ in range(2):
        x = torch.linspace(-1, 1, 6).reshape(1, 2, 3)
        for t in ours.timesteps:
            x = ours.step(x0_like(x, t), t, x).prev_sample
        runs.append(x)
    assert torch.equal(*runs)
