"""kinema bench ops: cases chosen by name, op and precision, timed, with their work beside."""

import json

import pytest
import torch

from kinema.bench.gpus import GPUS, of_device
from kinema.ops.cases import all_cases


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    monkeypatch.setattr("kinema.bench.peaks.SIZES", {"cpu": (32,)})
    monkeypatch.setattr("kinema.bench.peaks.COPIED", {"cpu": 1 << 12})
    monkeypatch.setattr("kinema.bench.native_peak.SECONDS", 1e-5)


def test_bench_ops(cli, out):
    file = out / "report.json"
    result = cli("bench", "ops", "--op", "unpatchify", "--op", "quantize", "--rounds", 2, "--json", file)
    assert result.code == 0 and result.err.startswith("--rounds 2: medians only")
    report = json.loads(file.read_text())
    wanted = [(c.op, c.name) for c in all_cases() if c.op == "unpatchify" and "sample" in c.name]
    measured = list(dict.fromkeys((row["op"], row["case"]) for row in report["rows"]))
    assert measured == wanted, "a CPU runs the sample model's, in fp32"
    for row in report["rows"]:
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"] and row["bytes"] > 0
        assert row["name"] in result.out
    assert report["benchmark"] == "ops" and report["ops"]["unpatchify"] in ("cpu", "reference")


def test_the_case_can_be_named(cli, out):
    file = out / "report.json"
    words = ("bench", "ops", "--op", "norm_modulate", "--case", "rms of 384", "--rounds", 1, "--json", file)
    assert cli(*words).code == 0
    assert {row["case"] for row in json.loads(file.read_text())["rows"]} == {"VAE rms of 384"}


def test_what_no_case_has_is_refused(cli):
    cli("bench", "ops", "--case", "nothing").assert_refused(1, "no case of any op in fp32 has 'nothing' in its name")
    cli("bench", "ops", "--rounds", 0).assert_refused(1, "0 rounds: wanted at least 1")


def test_what_does_not_fit_into_memory_is_said(cli, out, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("kinema.bench.rounds.interleaved", full)
    result = cli("bench", "ops", "--op", "unpatchify")
    assert result.code == 0 and "out of memory" in result.out


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_a_device_is_known_by_its_name(device, name):
    gpu = of_device(device)
    assert (gpu.name if gpu is not None else None) == name
    assert gpu is None or gpu in GPUS
