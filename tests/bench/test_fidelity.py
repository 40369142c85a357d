"""bench fidelity: distances with known values, baselines, who is dominated, the noise of both runs, and a tiny run."""

import json
import math
import shutil

import numpy as np
import pytest

from kinema.bench import fidelity_costs, lossy, variants
from kinema.bench.clip_figures import Figures, Track, figures_of, summary
from kinema.bench.clip_store import ClipStore, digest
from kinema.bench.fidelity_costs import equal_cost_steps, mark_dominated
from kinema.bench.image_distance import SAME, psnr, ssim
from kinema.bench.prompt_sets import Asked, asked
from kinema.bench.variants import Variant, generate, with_steps
from kinema.cli.main import main
from kinema.pipeline import VideoPipeline


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


def test_a_clip_is_judged_by_itself_and_all_of_them_together():
    """One clip far away: it halves the mean's gain and decides the pooled figure, not the median."""
    errors = [65.025, 65.025, 65.025, 6502.5, 0.0]  # 30, 30, 30, 10 dB and the same
    found = [Figures(error, 0.9, [0.1, 0.2 + i], i < 3) for i, error in enumerate(errors)]
    exact = [Figures(0.0, 1.0, [0.0, 0.0], right) for right in (False, True, True, True, True)]
    row = summary(found, exact)
    assert row["psnr"] == pytest.approx((30 * 3 + 10 + SAME) / 5) and row["psnr_median"] == pytest.approx(30)
    assert row["psnr_p5"] == pytest.approx(14) and row["psnr_close"] == 0.8
    assert row["psnr_pooled"] == pytest.approx(10 * math.log10(255**2 / np.mean(errors)))
    assert row["psnr_interval"][0] < row["psnr"] < row["psnr_interval"][1]
    assert row["step_errors"] == pytest.approx([0.1, 2.2]) and row["last_step_error"] == row["step_errors"][-1]
    assert row["right"] == 3 and row["changed"] == {"lost": 2, "won": 1, "p": 1.0}
    assert row["adherence_interval"][0] < 0.6 < row["adherence_interval"][1]


def test_what_nothing_detects_has_no_adherence():
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    track = Track(frames, np.ones((2, 3, 1, 2, 2), np.float32))
    other = Track(frames // 2, np.ones((3, 3, 1, 2, 2), np.float32))
    assert figures_of(track, track, Asked("a cat", 0)) == Figures(0.0, 1.0, [0.0, 0.0], None)
    found = figures_of(other, track, Asked("a cat", 0))
    assert found.step_errors is None and found.psnr == pytest.approx(psnr(frames // 2, frames))
    assert "adherence" not in summary([found] * 5, [found] * 5) and "step_errors" not in summary([found], [found])


def row(name, speed, quality, width=0.02, kind="precision", share=1.0):
    interval = {"median": speed, "low": speed * (1 - width), "high": speed * (1 + width)}
    kind = "exact" if name == "exact" else kind
    return {"name": name, "kind": kind, "than_exact": interval, "psnr": quality, "forwards_share": share}


def test_equal_cost_is_as_many_steps_as_fit():
    rows = [row(name, speed, 0) for name, speed in (("exact", 1.0), ("a", 2.0), ("b", 0.8), ("c", 100.0))]
    assert equal_cost_steps(rows, 20, 1.0) == [10, 1], "who is not faster has no baseline"
    assert equal_cost_steps([row("a", 1.25, 0)], 20, 0.5) == [12], "only denoising becomes shorter"
    assert equal_cost_steps([row("cache", 1.1, 0, share=0.5)], 20, 0.5) == [10], "forwards that are saved are counted"
    assert equal_cost_steps([row("floor", 2.0, 0, kind="noise floor")], 20, 1.0) == []


def test_who_is_dominated():
    rows = [
        row("exact", 1.0, 100),
        row("good", 1.5, 45),
        row("worse and slower", 1.3, 40),
        row("worse, a little slower", 1.49, 40),
        row("slower than exact", 0.9, 60),
        row("faster and worse", 2.0, 30),
        row("floor", 0.5, 90, kind="noise floor"),
    ]
    mark_dominated(rows)
    assert {r["name"]: r.get("dominated") for r in rows} == {
        "exact": None,
        "good": None,
        "worse and slower": "good",
        "worse, a little slower": None,  # that may be noise
        "slower than exact": "exact",
        "faster and worse": None,
        "floor": None,
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


def test_the_store_finds_what_belongs_to_a_key_and_survives_a_kill(tmp_path):
    store, figures = ClipStore(tmp_path / "new"), Figures(1.5, 0.9, [0.1], True)
    store.add("a", "one", figures)
    store.add("b", "one", Figures(2.5, 0.8, None, None))
    file = tmp_path / "new" / "figures.jsonl"
    file.write_text(file.read_text() + '{"key": "a", "clip": "two", "squ')
    store = ClipStore(tmp_path / "new")
    assert store.figures("a") == {"one": figures} and store.figures("c") == {}
    store.add("a", "two", figures)
    assert store.figures("a") == {"one": figures, "two": figures}, "the line after one that was cut short is whole"
    track = Track(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.ones((1, 2, 1, 1, 1), np.float32))
    assert not store.has("a", "one")
    store.keep("a", "one", track)
    assert store.has("a", "one") and not store.has("b", "one")
    assert np.array_equal(store.track("a", "one").frames, track.frames)
    assert digest({"x": Asked("a", 0)}) != digest({"x": Asked("a", 1)})


@pytest.fixture(scope="module")
def stochastic(tiny, tmp_path_factory):
    """The tiny model with a sampler that draws noise in each step."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("stochastic") / "model")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("UniPCMultistepScheduler", "DPMSolverMultistepScheduler"))
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    sampler = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", **flow}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(sampler))
    return folder


@pytest.fixture(scope="module")
def exact(stochastic):
    """The exact run of four steps of a clip of 20 tokens."""
    pipe = VideoPipeline.from_pretrained(stochastic, backend="reference", threads=1)
    size = {"num_frames": 17, "height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 8}
    return Variant("exact", "exact", pipe, {**size, "num_inference_steps": 4})


def test_a_clip_depends_on_its_own_prompt_and_seed_alone(exact):
    clips = asked("judge", 3)
    together, _ = generate(exact, clips)
    (alone,), _ = generate(exact, clips[2:])
    assert np.abs(together[2].latents - alone.latents).max() <= 1e-4 * np.abs(alone.latents).max()
    assert together[0].latents.shape[0] == 4 and together[0].frames.dtype == np.uint8


def test_the_whole_path_of_the_same_run_is_its_own_noise_and_that_of_a_longer_run_is_another(exact):
    clips = asked("judge", 2)
    (own, _), _ = generate(exact, clips)
    (same, _), _ = generate(with_steps(exact, 4, path_of=4), clips)
    assert np.abs(own.latents - same.latents).max() <= 1e-3 * np.abs(own.latents).max()
    (fewer, _), _ = generate(with_steps(exact, 2), clips)
    (coupled, _), _ = generate(with_steps(exact, 2, path_of=4), clips)
    assert np.abs(fewer.latents - coupled.latents).max() > 1e-2 * np.abs(fewer.latents).max()


def given_times(calls, rounds, **_):
    """The two steps take half of the time, everything else all of it."""
    for call in calls.values():
        call()
    return {name: [1.0 if name == "two steps" else 2.0] * rounds for name in calls}


SMALL = ["--tokens", "20", "--text-tokens", "8", "--steps", "4", "--prompts", "2", "--threads", "1"]


def test_bench_fidelity(stochastic, tmp_path, capsys, monkeypatch):
    made, run = [], variants.generate

    def watched(variant, clips):
        made.append((variant.name, variant.pipe.scheduler.core.has_noise, len(clips)))
        return run(variant, clips)

    monkeypatch.setattr(variants, "generate", watched)
    monkeypatch.setattr(lossy, "OPTIONS", dict(lossy.OPTIONS))
    lossy.register(lossy.Lossy("two steps", "test", request={"num_inference_steps": 2}))
    monkeypatch.setattr(fidelity_costs, "interleaved", given_times)
    file = tmp_path / "report.json"
    options = [word for name in ("int8", "two steps") for word in ("--option", name)]
    command = ["bench", "fidelity", "-m", str(stochastic), *SMALL, *options, "--rounds", "5", "--fewer", "3"]
    command += ["--resume", str(tmp_path / "found"), "--json", str(file)]
    assert main([*command, "--backend", "reference"]) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert all(noisy and count == 2 for _, noisy, count in made) and len(made) == 7, "two steps are made once"
    assert rows["exact"]["psnr"] == SAME and rows["exact"]["step_errors"] == [0.0] * 4
    assert rows["int8"]["psnr"] < SAME and 0 < rows["int8"]["ssim"] < 1 and rows["int8"]["last_step_error"] > 0
    assert rows["noise floor"].get("failed") or rows["noise floor"]["last_step_error"] < rows["int8"]["last_step_error"]
    assert "step_errors" not in rows["two steps"] and rows["two steps"]["forwards_share"] == 0.5
    fewer = [f"exact, {n} steps{noise}" for n in (3, 2) for noise in ("", ", the same noise")]
    assert [name for name, row in rows.items() if row["kind"] == "fewer steps"] == fewer
    assert rows["two steps"]["than_exact"]["median"] == 2.0 and rows["int8"]["dominated"] == "exact"
    assert rows["two steps"]["psnr"] == rows["exact, 2 steps"]["psnr"] != rows[fewer[3]]["psnr"]
    assert all(0 <= row["adherence"] <= 1 and name in printed for name, row in rows.items() if "psnr" in row)
    made.clear()
    assert main([*command, "--backend", "reference"]) == 0
    assert not made, "all was found again"
    again = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert again["int8"]["psnr_clips"] == rows["int8"]["psnr_clips"]
    assert main([*command, "--backend", "reference", "--prompts", "3"]) == 0
    assert {count for _, _, count in made} == {1}, "only the new clip was made"


def test_prompts_of_ones_own_are_compared_and_not_judged(stochastic, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    command = ["bench", "fidelity", "-m", str(stochastic), *SMALL, "--rounds", "0", "--prompts-from", str(file)]
    assert main([*command, "--option", "int8", "--backend", "reference", "--json", str(tmp_path / "a.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "a.json").read_text())["rows"]}
    assert "adherence" not in rows["int8"] and "than_exact" not in rows["int8"] and rows["int8"]["psnr"] < SAME


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--option", "magic"), "no lossy option 'magic'"),
        (("--fewer", "20", "--steps", "20"), "fewer than the exact run's 20"),
        (("--prompts", "0"), "--prompts 0: wanted at least 1"),
        (("--prompts-from", "nowhere.txt"), "cannot read nowhere.txt"),
    ],
)
def test_what_cannot_be_compared_is_refused(tiny, capsys, words, said):
    assert main(["bench", "fidelity", "-m", str(tiny), *words]) == 1
    assert said in capsys.readouterr().err
