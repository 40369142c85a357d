"""--scheduler and --flow-shift: the model samples as the options say, or one line says why not."""

from __future__ import annotations

import json

import numpy as np
import pytest

import kinema
from kinema import schedulers

CLIP = ("--height", 32, "--width", 48, "--num-frames", 5, "--steps", 4, "--seed", 3)
CALL = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 4, "seed": 3}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

CHOICES = {
    "unipc": (("--scheduler", "unipc"), {"_class_name": "UniPCMultistepScheduler", **FLOW, "flow_shift": 3.0}),
    "euler": (("--scheduler", "euler"), {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}),
    "dpm++": (("--scheduler", "DPM++"), {"_class_name": "DPMSolverMultistepScheduler", **FLOW, "flow_shift": 3.0}),
    "class": (
        ("--scheduler", "FlowMatchEulerDiscreteScheduler"),
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    ),
    "shift": (("--flow-shift", 7), {"_class_name": "UniPCMultistepScheduler", **FLOW, "flow_shift": 7.0}),
    "both": (
        ("--scheduler", "euler", "--flow-shift", 1.5),
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.5},
    ),
}


@pytest.mark.parametrize(("options", "config"), CHOICES.values(), ids=CHOICES.keys())
def test_the_scheduler_is_chosen(cli, tiny, out, options, config):
    result = cli("generate", "a red circle", "-m", tiny, "-o", out / "a.npy", *CLIP, *options)
    assert result.code == 0, result.err
    pipe = kinema.VideoPipeline.from_pretrained(tiny)
    own = pipe("a red circle", **CALL).videos[0].frames
    pipe.scheduler = schedulers.from_config(config)
    expected = pipe("a red circle", **CALL).videos[0].frames
    assert np.array_equal(np.load(out / "a.npy"), expected)
    assert ("unipc" in options) == np.array_equal(own, expected)


@pytest.mark.parametrize("place", ["file", "folder", "model"])
def test_a_scheduler_is_read_from_a_file(cli, tiny, out, tmp_path, place):
    config = {"_class_name": "UniPCMultistepScheduler", **FLOW, "flow_shift": 9.0, "solver_order": 1}
    folder = tmp_path / "other" / ("scheduler" if place == "model" else "")
    folder.mkdir(parents=True)
    file = folder / ("mine.json" if place == "file" else "scheduler_config.json")
    file.write_text(json.dumps(config))
    given = {"file": file, "folder": folder, "model": tmp_path / "other"}[place]
    assert cli("generate", "x", "-m", tiny, "-o", out / "a.npy", *CLIP, "--scheduler", given).code == 0
    pipe = kinema.VideoPipeline.from_pretrained(tiny)
    pipe.scheduler = schedulers.from_config(config)
    assert np.array_equal(np.load(out / "a.npy"), pipe("x", **CALL).videos[0].frames)


def test_a_stochastic_scheduler_adds_noise_in_short_steps_only(cli, tiny, out, tmp_path):
    config = {"_class_name": "DPMSolverMultistepScheduler", **FLOW, "flow_shift": 3.0}
    config["algorithm_type"] = "sde-dpmsolver++"
    file = tmp_path / "sde.json"
    file.write_text(json.dumps(config))
    words = ("generate", "x", "-m", tiny, "-o", out / "a.npy", *CLIP, "--scheduler", file, "--noise-max-step", 1.0)
    assert cli(*words).code == 0
    pipe = kinema.VideoPipeline.from_pretrained(tiny)
    found = []
    for longest in (1.0, None):
        pipe.scheduler = schedulers.from_config({**config, "noise_max_step": longest})
        found.append(np.array_equal(np.load(out / "a.npy"), pipe("x", **CALL).videos[0].frames))
    assert found == [True, False]


REFUSED = {
    "noise": (("--noise-max-step", 0.5), ["noise_max_step is for DPM-Solver as an SDE", "leave it out"]),
    "name": (("--scheduler", "heun"), ["no scheduler 'heun'", "unipc, euler, dpm++", "scheduler_config.json"]),
    "file": (("--scheduler", "none.json"), ["none.json"]),
    "ddim": (("--scheduler", "ddim"), ["DDIMScheduler", "no flow matching", "unipc, euler, dpm++"]),
    "zero": (("--flow-shift", 0), ["flow_shift is 0.0", "0.001 to 1000"]),
    "nan": (("--flow-shift", "nan"), ["flow_shift is nan"]),
    "steps": (("--steps", 1001), ["num_inference_steps is 1001", "1000 timesteps"]),
}


@pytest.mark.parametrize(("options", "phrases"), REFUSED.values(), ids=REFUSED.keys())
def test_what_there_is_not_is_refused(cli, tiny, out, options, phrases):
    cli("generate", "x", "-m", tiny, "-o", out / "a.npy", *CLIP, *options).assert_refused(1, *phrases)


def test_a_shift_of_a_scheduler_without_is_refused(cli, tiny, out, tmp_path):
    file = tmp_path / "plain.json"
    file.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", "prediction_type": "epsilon"}))
    words = ("--scheduler", file, "--flow-shift", 3)
    result = cli("generate", "x", "-m", tiny, "-o", out / "a.npy", *CLIP, *words)
    result.assert_refused(1, "flow_shift is for flow matching", "UniPCMultistepScheduler")
