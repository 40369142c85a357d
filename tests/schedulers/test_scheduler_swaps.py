"""`Other.from_config(pipe.scheduler.config)`, saved: kinema loads what diffusers loads, and counts the same steps."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from kinema import schedulers
from kinema.errors import CheckpointError, RequestError
from kinema.schedulers.loading import _CORES

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc of Wan": ("UniPCMultistepScheduler", FLOW),
    "unipc with bh1": ("UniPCMultistepScheduler", {**FLOW, "solver_type": "bh1", "disable_corrector": [0, 1]}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm of the sample": ("DPMSolverMultistepScheduler", {**FLOW, "algorithm_type": "sde-dpmsolver++"}),
    "dpm karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "euler_at_final": True}),
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 5.0}),
    "flow euler of LTX": ("FlowMatchEulerDiscreteScheduler", {"base_shift": 0.95, "max_shift": 2.05}),
    "flow euler, linear": (
        "FlowMatchEulerDiscreteScheduler",
        {"time_shift_type": "linear", "base_image_seq_len": 4096},
    ),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "cog ddim": ("CogVideoXDDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "sigma_min": 0.01}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "heun": ("HeunDiscreteScheduler", {"beta_schedule": "scaled_linear"}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    "lcm": ("LCMScheduler", {"clip_sample": False, "original_inference_steps": 40}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "singlestep": ("DPMSolverSinglestepScheduler", {}),
    "sa": ("SASolverScheduler", {}),
    "edm": ("EDMEulerScheduler", {}),
}
TARGETS = ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler")


def as_saved(scheduler: Any, folder: Path) -> dict[str, Any]:
    scheduler.save_pretrained(folder)
    saved: dict[str, Any] = json.loads((folder / "scheduler_config.json").read_text())
    return saved


def swapped(source: str, target: str, folder: Path) -> Any:
    """The other class's scheduler, made of one that came from a folder, as a pipeline's did; and saved."""
    name, options = SOURCES[source]
    as_saved(getattr(diffusers, name)(**options), folder / "first")
    first = getattr(diffusers, name).from_pretrained(folder / "first")
    ours = {"clip_sample": False} if target == "DDIMScheduler" else {}
    try:
        other = getattr(diffusers, target).from_config(first.config, **ours)
    except (ValueError, NotImplementedError) as error:
        pytest.skip(f"diffusers refuses it: {error}")
    other.save_pretrained(folder / "swapped")
    return other


FLOW_SOURCES = ("unipc of Wan", "unipc with bh1", "dpm of the sample")
PAIRS = [(a, b) for a in SOURCES for b in TARGETS if a not in FLOW_SOURCES or b != "DDIMScheduler"]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_swapped_scheduler_is_read_as_diffusers_reads_it(source: str, target: str, tmp_path: Path) -> None:
    other = swapped(source, target, tmp_path)
    theirs = getattr(diffusers, target).from_pretrained(tmp_path / "swapped")
    for ours in (schedulers.from_pretrained(tmp_path / "swapped"), schedulers.from_config(other.config)):
        for steps in (1, 8, 21):
            try:
                theirs.set_timesteps(steps)
            except (IndexError, ValueError):
                continue  # there are configurations that diffusers' class cannot count
            if not np.isfinite(np.asarray(theirs.timesteps, dtype=np.float64)).all():
                continue
            ours.set_timesteps(steps)
            assert torch.equal(ours.timesteps, theirs.timesteps)
            if hasattr(theirs, "sigmas"):
                assert np.abs(np.asarray(ours.sigmas) - np.asarray(theirs.sigmas)).max() <= 1e-6 * max(
                    1, ours.sigmas.max()
                )


@pytest.mark.parametrize("target", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_step_is_the_same_too(target: str, tmp_path: Path) -> None:
    swapped("unipc of Wan", target, tmp_path)
    results = []
    for kind in (schedulers, getattr(diffusers, target)):
        scheduler = kind.from_pretrained(tmp_path / "swapped")
        scheduler.set_timesteps(5)
        x = torch.linspace(-1, 1, 24).view(1, 2, 3, 4)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x * 3 + 0.001 * t), t, x, return_dict=False)[0]
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        ("ddpm", {"clip_sample": True}, "clip_sample=True is not supported"),
        ("unipc", {"thresholding": True, "clip_sample": False}, "thresholding=True is not supported"),
        ("unipc of Wan", {}, "prediction_type is 'flow_prediction', wanted 'epsilon'"),
        ("unipc", {"clip_sample": False, "beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
    ],
)
def test_what_the_class_reads_and_kinema_cannot_honour_is_still_refused(
    source: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    swapped(source, "DDIMScheduler", tmp_path)
    file = tmp_path / "swapped/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=rf"swapped/scheduler_config\.json: .*{said}"):
        schedulers.from_pretrained(tmp_path / "swapped")


@pytest.mark.parametrize("name", _CORES)
def test_every_option_of_diffusers_class_is_known(name: str) -> None:
    """What is not a field is ignored: a field for each option, so that none is that its class would read."""
    theirs = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    ours = {field.name for field in fields(_CORES[name].config_class)}
    assert theirs <= ours


@pytest.mark.parametrize("source", ["unipc of Wan", "dpm of the sample", "flow euler", "ddim"])
@pytest.mark.parametrize("target", TARGETS)
def test_diffusers_takes_a_configuration_of_kinemas(source: str, target: str, tmp_path: Path) -> None:
    """`Other.from_config(pipe.scheduler.config)`, as with its own; it would ask the network for anything but a dict."""
    name, options = SOURCES[source]
    as_saved(getattr(diffusers, name)(**options), tmp_path)
    ours = schedulers.from_pretrained(tmp_path)
    shift = {"flow_shift": 5.0} if target[:3] in ("Uni", "DPM") and "flow_shift" in ours.config else {}
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    try:
        wanted = getattr(diffusers, target).from_config(theirs.config, **shift)
    except ValueError as error:
        pytest.skip(f"diffusers refuses it: {error}")
    got = getattr(diffusers, target).from_config(ours.config, **shift)
    for scheduler in (got, wanted):
        scheduler.set_timesteps(7)
    assert torch.equal(torch.as_tensor(got.timesteps), torch.as_tensor(wanted.timesteps))
    if shift:
        assert schedulers.core_of(got).config.flow_shift == got.config.flow_shift == 5.0


def test_a_configuration_cannot_be_changed() -> None:
    config = schedulers.from_config({"_class_name": "UniPCMultistepScheduler", **FLOW}).config
    changes: list[Any] = [
        lambda: config.update(flow_shift=1.0),
        lambda: config.__setitem__("flow_shift", 1.0),
        lambda: setattr(config, "flow_shift", 1.0),
        lambda: config.pop("flow_shift"),
        lambda: config.setdefault("new", 1),
        lambda: config.__ior__({"flow_shift": 1.0}),
    ]
    for change in changes:
        with pytest.raises(RequestError, match="cannot be changed: make another"):
            change()
    assert config.flow_shift == 3.0 and isinstance(config, dict)
    for copied in (copy.deepcopy(config), copy.copy(config), config.copy(), pickle.loads(pickle.dumps(config))):
        copied["flow_shift"] = 4.0
    assert config["flow_shift"] == 3.0 and not hasattr(config, "nothing")
    assert json.loads(json.dumps(config))["_class_name"] == "UniPCMultistepScheduler"


def test_what_no_class_knows_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = {
        "_class_name": "UniPCMultistepScheduler",
        "solver_ordr": 3,
        "note\x1b[2J": "x",
        "_private": 1,
        "shift": 7.0,
    }
    with caplog.at_level(logging.WARNING):
        core = schedulers.core_from_config(config)
    assert core.config.solver_order == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        r"scheduler_config.json: UniPCMultistepScheduler has no solver_ordr, note\x1b[2J: ignored"
    )
    caplog.clear()
    schedulers.core_from_config({"_class_name": "UniPCMultistepScheduler", "shift": 7.0, "clip_sample": True})
    assert caplog.records == []
