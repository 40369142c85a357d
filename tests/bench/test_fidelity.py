"""bench fidelity: distances with known values, the equal-time baseline, who is dominated, and a tiny run."""

import json
import math
import shutil

import numpy as np
import pytest

from kinema.bench import fidelity, lossy
from kinema.bench.fidelity import equal_time_steps, mark_dominated
from kinema.bench.image_distance import SAME, psnr, ssim
from kinema.cli.main import main


def test_psnr_of_known_errors():
    video = np.random.default_rng(0).integers(10, 240, (2, 3, 16, 16, 3)).astype(np.uint8)
    assert psnr(video, video) == SAME
    assert psnr(video + np.uint8(5), video) == pytest.approx(20 * math.log10(255 / 5))


def test_ssim_of_known_pictures():
    video = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 3)).astype(np.uint8)
    assert ssim(video, video) == pytest.approx(1.0)
    assert ssim(255 - video, video) < -0.5
    dark, light = np.full_like(video, 50), np.full_like(video, 100)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, light) == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1))
    assert 0.2 < ssim((video // 32) * 32, video) < 1.0


def row(name, speed, quality, width=0.02):
    interval = {"median": speed, "low": speed * (1 - width), "high": speed * (1 + width)}
    return {"name": name, "than_exact": interval, "psnr": quality}


def test_equal_time_is_as_many_steps_as_fit():
    rows = {name: row(name, speed, 0) for name, speed in (("exact", 1.0), ("a", 2.0), ("b", 0.8), ("c", 100.0))}
    assert equal_time_steps(rows, 20, 1.0) == [10, 1], "who is not faster has no baseline"
    assert equal_time_steps({"a": row("a", 1.25, 0)}, 20, 0.5) == [12], "only denoising becomes shorter"


def test_who_is_dominated():
    rows = [
        row("exact", 1.0, 100),
        row("good", 1.5, 45),
        row("worse and slower", 1.3, 40),
        row("worse, a little slower", 1.49, 40),
        row("slower than exact", 0.9, 60),
        row("faster and worse", 2.0, 30),
    ]
    mark_dominated(rows)
    assert {r["name"]: r.get("dominated") for r in rows} == {
        "exact": None,
        "good": None,
        "worse and slower": "good",
        "worse, a little slower": None,  # that may be noise
        "slower than exact": "exact",
        "faster and worse": None,
    }


@pytest.mark.parametrize(
    ("slow", "fast", "dominated"),
    [
        ({"ssim": 0.9}, {"ssim": 0.9}, True),
        ({"ssim": 0.9}, {"ssim": 0.8}, False),
        ({"adherence": 0.5}, {"adherence": 0.4}, False),
        ({"last_step_error": 0.1}, {"last_step_error": 0.2}, False),
        ({"last_step_error": 0.2}, {"last_step_error": 0.1}, True),
        ({"last_step_error": 0.1}, {}, True),  # other steps have no error of the last one: the rest decides
    ],
)
def test_who_is_farther_in_any_distance_does_not_dominate(slow, fast, dominated):
    rows = [row("exact", 1.0, 100), row("slow", 1.3, 40) | slow, row("fast", 1.6, 40) | fast]
    mark_dominated(rows)
    assert (rows[1].get("dominated") == "fast") is dominated


def test_an_option_registers_itself_once(monkeypatch):
    monkeypatch.setattr(lossy, "OPTIONS", dict(lossy.OPTIONS))
    lossy.register(lossy.Lossy("cache", "cache"))
    assert "cache" in lossy.OPTIONS
    with pytest.raises(ValueError, match="is known already"):
        lossy.register(lossy.Lossy("cache", "cache"))


def given_times(calls, rounds, **_):
    """The two steps take half of the time, everything else all of it."""
    return {name: [1.0 if name in ("two steps", "exact, 3 steps") else 2.0] * 5 for name in calls}


@pytest.fixture
def stochastic(tiny, tmp_path):
    """The tiny model with a sampler that draws noise in each step."""
    folder = shutil.copytree(tiny, tmp_path / "stochastic")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("UniPCMultistepScheduler", "DPMSolverMultistepScheduler"))
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    sampler = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", **flow}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(sampler))
    return folder


def test_bench_fidelity(stochastic, tmp_path, capsys, monkeypatch):
    noisy, run = [], fidelity.generate

    def watched(setting, *given):
        noisy.append(setting.pipe.scheduler.core.has_noise)
        return run(setting, *given)

    monkeypatch.setattr(fidelity, "generate", watched)
    monkeypatch.setattr(lossy, "OPTIONS", dict(lossy.OPTIONS))
    lossy.register(lossy.Lossy("two steps", "test", request={"num_inference_steps": 2}))
    monkeypatch.setattr("kinema.bench.rounds.interleaved", given_times)
    monkeypatch.setattr("kinema.bench.fidelity.denoising_share", lambda exact: 1.0)
    file = tmp_path / "report.json"
    options = [word for name in ("bf16", "int8", "two steps") for word in ("--option", name)]
    command = ["bench", "fidelity", "-m", str(stochastic), "--tokens", "20", "--text-tokens", "8", "--steps", "6"]
    small = ["--prompts", "2", "--judged", "1", "--rounds", "2", "--threads", "1", "--backend", "reference"]
    assert main([*command, *options, *small, "--json", str(file)]) == 0
    assert noisy and not any(noisy)
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["exact"]["psnr"] == SAME and rows["exact"]["step_errors"] == [0.0] * 6
    assert 0 < rows["bf16"]["last_step_error"] < rows["int8"]["last_step_error"]
    assert rows["int8"]["psnr"] < SAME and 0 < rows["int8"]["ssim"] < 1
    assert "step_errors" not in rows["two steps"]
    assert [name for name, row in rows.items() if row["kind"] == "fewer steps"] == ["exact, 3 steps"]
    assert rows["two steps"]["than_exact"]["median"] == 2.0 and rows["bf16"]["dominated"] == "exact"
    assert all(0 <= row["adherence"] <= 1 and name in printed for name, row in rows.items())


def test_unknown_options_are_refused(tiny, capsys):
    assert main(["bench", "fidelity", "-m", str(tiny), "--option", "magic"]) == 1
    assert "no lossy option 'magic'" in capsys.readouterr().err
