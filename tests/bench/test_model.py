"""bench model on a tiny folder: its rows, and FLOPs that torch's own counter agrees with."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kinema.bench import model, model_parts
from kinema.bench.model_counts import counted
from kinema.bench.model_parts import calls_of, grid_of, inputs_for, sizes_for
from kinema.buffers.peak import peak_bytes, reset_peak
from kinema.cli.main import main
from kinema.pipeline import VideoPipeline
from kinema.request.stats import Stats


@pytest.mark.parametrize(
    ("tokens", "grid"), [(1280, (5, 16, 16)), (256, (4, 8, 8)), (80, (5, 4, 4)), (1, (1, 1, 1)), (7, (7, 1, 1))]
)
def test_tokens_become_the_squarest_frames(tokens, grid):
    assert grid_of(tokens) == grid


@pytest.fixture(scope="module")
def pipe(tiny):
    return VideoPipeline.from_pretrained(str(tiny), backend="reference", threads=1)


def flops_by_torch(call):
    # products that torch's counter does not know are taken apart into such that it does
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("part", model_parts.PARTS)
def test_flops_are_those_of_torchs_counter(pipe, part):
    call = calls_of(pipe, inputs_for(pipe, sizes_for(pipe, 80, 12)))[part]
    with counted(pipe.ops) as tally:
        call()
    assert tally.flops == pytest.approx(flops_by_torch(call), rel=0.01)
    before = tally.flops
    call()
    assert tally.flops == before > 0, "outside of the block nothing is counted"


def test_flops_are_those_of_diffusers(pipe, tiny):
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    inputs = inputs_for(pipe, sizes_for(pipe, 80, 12))
    theirs = WanTransformer3DModel.from_pretrained(tiny / "transformer")
    vae = AutoencoderKLWan.from_pretrained(tiny / "vae")
    for part, call in (
        ("transformer", lambda: theirs(inputs.latents, inputs.timestep, inputs.text)),
        ("vae", lambda: vae.decode(inputs.decoded)),
    ):
        with counted(pipe.ops) as tally:
            calls_of(pipe, inputs)[part]()
        assert tally.flops == pytest.approx(flops_by_torch(call), rel=0.01), part


def test_a_forward_that_scatters_is_measured_for_longer(tiny, monkeypatch):
    rounds = iter([[1.0, 2.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0], [9.0]])
    monkeypatch.setattr(
        "kinema.bench.rounds.interleaved", lambda calls, *_, **__: {name: next(rounds) for name in calls}
    )
    pipe = VideoPipeline.from_pretrained(tiny)
    row = model.forward(pipe, model_parts.sizes_for(pipe, 20, 8), "transformer", 5)
    assert len(row["samples"]) == 15 and next(rounds) == [9.0], "until the interval is narrow, and no longer"


def test_bench_model(tiny, tmp_path, capsys):
    file = tmp_path / "report.json"
    command = ["bench", "model", "-m", str(tiny), "--tokens", "20", "--text-tokens", "8", "--steps", "2"]
    parts = [word for part in (*model_parts.PARTS, "generation") for word in ("--part", part)]
    assert main([*command, *parts, "--rounds", "2", "--threads", "1", "--json", str(file)]) == 0
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    rows = {row["name"]: row for row in report["rows"]}
    assert {"transformer, 20 tokens", "vae, 20 tokens", "text, 8 tokens"} <= set(rows)
    assert report["grid"] == [5, 2, 2]
    for name, row in rows.items():
        assert len(row["samples"]) == 2 and name in printed
        whole = not name.startswith("generation") or ", total, " in name
        assert ("peak_bytes" in row) is whole and (not whole or row["peak_bytes"] > 2**20)
    assert rows["vae, 20 tokens"]["flops_by_op"]["conv3d"] > 0 and rows["vae, 20 tokens"]["of_peak"] > 0
    stages = {name.split(", ")[1] for name in rows if name.startswith("generation")}
    assert {"text", "denoise", "decode", "total"} <= stages


def test_a_prompt_is_as_long_as_asked(pipe, monkeypatch):
    """In whole generations too, in this process and in one of its own."""
    seen = []
    stats = Stats(seconds={"denoise": 1.0})
    monkeypatch.setattr("kinema.bench.generate.measure", lambda pipe, request: seen.append(request) or (stats, ""))
    sizes = sizes_for(pipe, 20, 7)
    model.generation(pipe, sizes, 1, 1)
    assert {request.max_sequence_length for request in seen} == {7}
    assert model.request_of(pipe, sizes, 1)["max_sequence_length"] == 7


def test_the_peak_of_a_generation_is_its_own(pipe):
    sizes = sizes_for(pipe, 20, 7)
    if not reset_peak(pipe.ops.device):
        pytest.skip("this system does not let the peak of memory start anew")
    large = torch.ones(1 << 26)  # 256 MiB, and gone before the generation
    before = peak_bytes(pipe.ops.device)
    del large
    (total,) = (row for row in model.generation(pipe, sizes, 1, 1) if "peak_bytes" in row)
    assert total["peak_is_of_this"] and total["peak_bytes"] < before - (1 << 27)


def cold(tiny, tmp_path):
    file = tmp_path / "report.json"
    command = ["bench", "model", "-m", str(tiny), "--tokens", "4", "--text-tokens", "8", "--steps", "1"]
    code = main([*command, "--part", "cold", "--rounds", "4", "--threads", "1", "--json", str(file)])
    return code, json.loads(file.read_text())["rows"] if file.exists() else None


def test_a_cold_start_ends_at_the_first_frame(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "COLD", "import time; print('frame', flush=True); time.sleep(0.5)")
    code, (row,) = cold(tiny, tmp_path)
    assert code == 0 and len(row["samples"]) == 2 and min(row["samples"]) > 0.005


def test_a_process_that_fails_has_no_time(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model, "COLD", "raise SystemExit(3)")
    assert cold(tiny, tmp_path) == (1, None)
    assert "ended with code 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cold_start_is_a_whole_generation(tiny, tmp_path):
    code, (row,) = cold(tiny, tmp_path)
    assert code == 0 and min(row["samples"]) > 0.3


def test_a_configuration_is_written_once(monkeypatch, tmp_path, capsys):
    written = []

    def write(folder, preset, **given):
        written.append((preset, given["layers"]))
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")

    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path))
    monkeypatch.setattr(model_parts, "write_random_model", write)
    folder = model_parts.folder_of("wan-1.3b", 4)
    assert model_parts.folder_of("wan2.1-t2v-1.3b", 4) == folder and folder.is_relative_to(tmp_path)
    assert model_parts.folder_of("wan-1.3b", None) != folder
    assert written == [("wan2.1-t2v-1.3b", 4), ("wan2.1-t2v-1.3b", None)]
    assert main(["bench", "model", "--layers", "4"]) == 1
    assert "--layers goes with --config" in capsys.readouterr().err
