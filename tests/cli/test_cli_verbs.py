"""What the verbs do when nothing goes wrong."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

import kinema

SIZE = ("--height", 32, "--width", 48, "--num-frames", 9, "--steps", 3)


def lines_of(result):
    return dict(line.split(maxsplit=1) for line in result.out.splitlines() if line.startswith("  "))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.npy", "frames.v2/"])
def test_generate_writes_what_the_pipeline_makes(cli, tiny, out, name):
    path = f"{out}/{name}"
    result = cli("generate", "a red circle", "-m", tiny, "-o", path, "--seed", 3, *SIZE)
    assert result.code == 0 and result.err == ""
    assert result.out.startswith(f"{path}: 9 frames of 48x32 at 16 fps, 0.56 s, ")
    assert [name.rstrip("/")] == os.listdir(out)
    expected = kinema.VideoPipeline.from_pretrained(tiny)(
        "a red circle", height=32, width=48, num_frames=9, num_inference_steps=3, seed=3
    )
    frames = expected.videos[0].frames
    assert len(np.unique(frames)) > 20
    if name == "clip.npy":
        assert np.array_equal(np.load(path), frames)
    elif name.endswith("/"):
        assert np.array_equal(np.stack([Image.open(f"{path}frame_{i:05}.png") for i in range(9)]), frames)
    elif name == "clip.mp4":
        with av.open(path) as container:
            assert sum(1 for _ in container.decode(video=0)) == 9


def test_the_summary_says_what_took_how_long(cli, tiny, out):
    result = cli("generate", "a red circle", "-m", tiny, "-o", out / "a.npy", "--seed", 3, *SIZE)
    stages = lines_of(result)
    assert {"start", "text", "denoise", "decode", "total"} <= set(stages)
    assert "3 steps" in stages["denoise"] and "seed 3" in stages["total"] and "peak memory" in stages["total"]


def test_json_is_one_object(cli, tiny, out):
    result = cli("generate", "x", "-m", tiny, "-o", out / "a.npy", "--seed", 3, "--json", "--fps", 8, *SIZE)
    assert result.out.count("\n") == 1 and result.err == ""
    report = json.loads(result.out)
    assert report["paths"] == [str(out / "a.npy")]
    assert (report["num_frames"], report["height"], report["width"], report["fps"]) == (9, 32, 48, 8.0)
    assert (report["seed"], report["steps"], report["forwards"]) == (3, 3, 6)
    assert {"start", "text", "denoise", "decode and write"} <= set(report["seconds"])
    assert sum(report["seconds"].values()) == pytest.approx(report["total_seconds"])
    assert report["total_seconds"] <= report["wall_seconds"]


@pytest.mark.parametrize(("name", "names"), [("v.npy", ["v-0.npy", "v-1.npy"]), ("v.1/", ["v.1-0", "v.1-1"])])
def test_several_videos_have_several_files(cli, tiny, out, name, names):
    result = cli("generate", "x", "-m", tiny, "-o", f"{out}/{name}", "--num-videos", 2, "--seed", 3, *SIZE)
    assert result.code == 0, result.err
    assert sorted(os.listdir(out)) == names
    if name == "v.npy":
        first, second = (np.load(out / file) for file in names)
        assert not np.array_equal(first, second)


def test_what_is_asked_reaches_the_request(cli, tiny, out, monkeypatch):
    asked = []
    complete = kinema.VideoPipeline.complete

    def spy(pipe, request, **how):
        asked.append((pipe, request))
        return complete(pipe, request, **how)

    monkeypatch.setattr(kinema.VideoPipeline, "complete", spy)
    words = ["--negative-prompt", "blur", "--guidance-scale", 1.0, "--seed", -1, "--max-sequence-length", 17, "--tiled"]
    words += ["--low-memory", "--backend", "reference", "--precision", "fp32", "--device", "cpu"]
    words += ["--quantize-attention", "int8"]
    result = cli("generate", "-m", tiny, "-o", out / "a.npy", *SIZE, *words, "--json", "--", "-a dash")
    assert result.code == 0, result.err
    assert json.loads(result.out)["forwards"] == 3
    pipe, request = asked[0]
    assert (request.prompt, request.negative_prompt, request.seed) == ("-a dash", "blur", None)
    assert (request.guidance_scale, request.max_sequence_length, request.num_inference_steps) == (1.0, 17, 3)
    assert request.tiling is not None and request.clip == (9, 32, 48)
    told = {"keep_loaded": False, "backend": "reference", "precision": "fp32", "device": "cpu"}
    assert pipe.options == replace(pipe.options, **told, quantize_attention="int8")
    assert pipe.ops.plan.quantize_attention == "int8"


def test_one_frame_makes_an_image(cli, tiny, out):
    size = ("--height", 32, "--width", 48, "--num-frames", 1, "--steps", 2)
    assert cli("generate", "x", "-m", tiny, "-o", out / "a.png", *size).code == 0
    assert Image.open(out / "a.png").size == (48, 32)


def test_a_terminal_gets_a_bar_and_a_pipe_gets_silence(process, tiny, out):
    terminal, its_other_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    words = ("generate", "x", "-m", tiny, *SIZE)
    with_bar = process(*words, "-o", out / "a.npy", stderr=its_other_end)
    os.close(its_other_end)
    shown = b""
    while chunk := read_terminal(terminal):
        shown += chunk
    os.close(terminal)
    stdout, _ = with_bar.communicate(timeout=120)
    assert with_bar.returncode == 0, shown
    text = shown.decode()
    assert "loading the model" in text and "3/3" in text and "9/9" in text
    assert stdout.startswith(f"{out}/a.npy: 9 frames") and "3/3" not in stdout

    silent = process(*words, "-o", out / "b.npy")
    stdout, stderr = silent.communicate(timeout=120)
    assert (silent.returncode, stderr) == (0, "")
    assert "\r" not in stdout and "\x1b" not in stdout


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_inspect(cli, tiny):
    result = cli("inspect", tiny, "--height", 32, "--width", 48, "--num-frames", 9, "--json")
    assert result.code == 0 and result.err == "" and result.out.count("\n") == 1
    report = json.loads(result.out)
    assert (report["latents"], report["tokens"]) == ([3, 4, 6], 18)
    assert report["modes"] == ["t2v", "v2v"]
    assert report["parts"]["transformer"]["class"] == "WanTransformer3DModel"
    from safetensors import safe_open

    for part in ("transformer", "vae", "text_encoder"):
        (file,) = (tiny / part).glob("*.safetensors")
        with safe_open(file, "pt") as tensors:
            count = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
        assert report["parts"][part]["parameters"] == count, part
    assert report["predicted_peak_bytes"] == max(report["predicted_bytes"].values())
    spoken = cli("inspect", tiny, "--height", 32, "--width", 48, "--num-frames", 9).out
    assert "9 frames of 48x32: latents 3x4x6, 18 tokens" in spoken
    assert all(name in spoken for name in report["parts"])


def test_an_estimate_makes_nothing(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "a.npy"
    words = ["a", "--model", tiny, "--height", 32, "--width", 32, "--num-frames", 5, "--steps", 2, "--output", output]
    first = cli("generate", *words, "--estimate")
    assert first.code == 0 and first.err == "" and not output.exists()
    assert "a first guess" in first.out and all(f"  {stage} " in first.out for stage in ("load", "denoise", "decode"))
    made = json.loads(cli("generate", *words, "--json").out)
    assert output.exists() and made["earlier_runs"] == 0 and made["estimated_seconds"] > 0
    again = json.loads(cli("generate", *words, "--estimate", "--json").out)
    assert again["earlier_runs"] == 1
    assert again["estimated_stage_seconds"]["denoise"] == made["seconds"]["denoise"]
    assert again["predicted_peak_bytes"] == max(again["predicted_bytes"].values())
    report = json.loads(cli("inspect", tiny, "--json", "--height", 32, "--width", 32, "--num-frames", 5).out)
    assert report["earlier_runs"] == 1 and report["estimated_seconds"] > 0


def test_inspect_of_more_videos_predicts_more(cli, tiny):
    one, four = (json.loads(cli("inspect", tiny, "--json", "--num-videos", n).out) for n in (1, 4))
    assert four["predicted_bytes"]["decode"] > 2 * one["predicted_bytes"]["decode"]


def test_doctor_names_every_op_and_its_backend(cli):
    from kinema.ops.plan import OPS

    report = json.loads(cli("doctor", "--json").out)
    assert [op["op"] for op in report["ops"]] == [op.name for op in OPS]
    assert {"machine", "libraries", "target", "kinema"} <= set(report)
    assert report["libraries"]["torch"] != "not installed"
    spoken = cli("doctor").out
    for op in report["ops"]:
        assert f"  {op['op']:16} {op['backend']}\n" in spoken


def test_doctor_names_the_native_instruction_set(cli, monkeypatch):
    from kinema.ops.common import native

    def said():
        return json.loads(cli("doctor", "--json").out)["machine"]["native kernels"]

    found = native.instruction_sets()
    if not found:
        pytest.skip("the native kernels are not built")
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    assert said().startswith(found[0])
    for isa in found:
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        assert said().split(";")[0] == isa and all(name in said() for name in found)
    monkeypatch.setenv(native.ISA_VARIABLE, "sse9")
    assert said().startswith("KINEMA_CPU_ISA=sse9: this build has no kernels")


def test_doctor_gives_the_reason_against_every_rejected_candidate(cli, monkeypatch):
    from kinema.ops import plan
    from kinema.ops.common import Implementation, Op

    def no_gpu(target):
        return [f"needs a GPU, got {target.device}", "needs triton"]

    reference = Implementation("reference", "kinema.ops.linear.reference")
    slow = Implementation("cpu", "nowhere")
    candidates = (Implementation("triton", "nowhere", no_gpu), reference, slow)
    monkeypatch.setattr(plan, "OPS", (Op("linear", ("linear",), candidates),))
    report = json.loads(cli("doctor", "--json").out)
    reasons = {"triton": "needs a GPU, got cpu; needs triton", "cpu": "reference is preferred"}
    assert report["ops"] == [{"op": "linear", "backend": "reference", "rejected": reasons}]
    spoken = cli("doctor").out
    assert "not triton: needs a GPU, got cpu; needs triton\n" in spoken
    cli("doctor", "--backend", "triton").assert_refused(1, "cannot run linear here: needs a GPU")


def test_bench_generate(cli, tiny, out, monkeypatch):
    file = out / "report.json"
    words = ("bench", "generate", "x", "-m", tiny, "--rounds", 2, "--json", file, *SIZE)
    result = cli(*words)
    assert result.code == 0 and result.err.startswith("--rounds 2: medians only")
    assert result.out.startswith(f"{tiny}: 1 x 9 frames of 48x32, 3 steps, 6 forwards, fp32 on cpu, 2 rounds\n")
    report = json.loads(file.read_text())
    assert report["command"].startswith(f"kinema bench generate x -m {tiny} --rounds 2 --json ")
    assert {"machine", "libraries", "target", "time", "kinema", "commit"} <= set(report)
    assert set(report["ops"].values()) <= {"cpu", "reference"}
    assert len(report["rounds"]) == 2 and report["warmup"] == 1
    assert {"text", "denoise", "decode", "total"} <= set(report["seconds"])
    for stage in ("text", "denoise", "decode"):
        spread = report["seconds"][stage]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert {spread["min"], spread["max"]} == {round_[stage] for round_ in report["rounds"]}
    assert report["peak_bytes"] > 2**20
    (digest,) = report["frames_sha256"]
    other = tuple(4 if word == 3 else word for word in words)
    assert cli(*other).code == 0
    assert json.loads(file.read_text())["frames_sha256"] != [digest]


def test_a_report_names_the_commit_only_of_our_own_checkout(tmp_path, monkeypatch):
    from kinema.bench.report import commit

    packages = [tmp_path / "site" / "kinema", tmp_path / "kinema"]
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    for package in packages:
        package.mkdir(parents=True)
        monkeypatch.setattr(kinema, "__file__", str(package / "__init__.py"))
        assert commit() is None  # in a folder of someone else's repository
    (tmp_path / "engine").mkdir()
    monkeypatch.setattr(kinema, "__file__", str(tmp_path / "engine" / "__init__.py"))
    clean = commit()
    assert clean is not None and len(clean) == 40
    (tmp_path / "new").touch()
    assert commit() == f"{clean}+"
