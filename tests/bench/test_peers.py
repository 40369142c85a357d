"""bench peers on a tiny folder: who is beside kinema, how far apart they are, and what those say that cannot run."""

import json
import shutil
import sys

import pytest
import torch

from kinema.bench import peers
from kinema.bench.peers import processes
from kinema.bench.peers.external import FIELDS, External
from kinema.cli.main import main
from kinema.errors import KinemaError, RequestError


@pytest.fixture
def bench(tiny, tmp_path, capsys):
    """Runs on a folder whose guidance is not what diffusers takes where it is told nothing."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_kinema_defaults": {"guidance_scale": 2.0}}))

    def run(*words, code=0):
        file = tmp_path / "report.json"
        command = ["bench", "peers", "-m", str(folder), "--tokens", "20", "--text-tokens", "8", "--steps", "2"]
        small = ["--rounds", "2", "--threads", "1", "--json", str(file)]
        assert main([*command, *small, *words]) == code
        said = capsys.readouterr()
        return ({r["name"]: r for r in json.loads(file.read_text())["rows"]}, said.out) if not code else said.err

    return run


def test_diffusers_beside_kinema(bench):
    rows, printed = bench("--peer", "diffusers")
    for part in ("transformer", "vae", "generation"):
        assert rows[f"{part}, kinema, reference ops"]["error"]["relative"] == 0
        theirs = rows[f"{part}, diffusers"]
        assert theirs["error"]["relative"] < 1e-4, part
        assert len(theirs["samples"]) == 2 and theirs["flops"] == rows[f"{part}, kinema"]["flops"] > 0
        assert f"{part}, diffusers" in printed
    assert "diffusers: diffusers, eager, torch" in printed, "settings are printed"


def test_torchs_own_int8_rounds_and_is_near(bench):
    rows, printed = bench("--peer", "torch-int8", "--part", "transformer", "--part", "vae", "--part", "generation")
    theirs = rows["transformer, torch-int8"]
    assert 1e-4 < theirs["error"]["relative"] < 0.2, "rounded, and to what it should be"
    assert 0 < rows["generation, torch-int8"]["error"]["relative"] < 1 and "vae, torch-int8" not in rows
    assert "quantize_dynamic" in printed


def test_who_is_not_installed_or_fails_says_so(bench, monkeypatch):
    class Broken:
        settings, needs, devices = "none", (), ("cpu",)

        def forward(self, *_):
            raise ZeroDivisionError("of its own")

    monkeypatch.setattr(peers, "PEERS", {"broken": "broken_peer", "openvino": peers.PEERS["openvino"]})
    monkeypatch.setitem(sys.modules, "broken_peer", type(sys)("broken_peer"))
    sys.modules["broken_peer"].PEER = Broken()
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "openvino" else object())
    rows, printed = bench("--part", "transformer")
    assert rows["transformer, broken"]["failed"] == "ZeroDivisionError: of its own"
    assert rows["transformer, openvino"]["failed"] == "not installed: openvino"
    assert "samples" in rows["transformer, kinema"] and "not installed: openvino" in printed


def test_a_process_of_its_own_is_timed_by_stage(bench):
    rows, printed = bench("--part", "process", "--peer", "torch-int8")
    row = rows["process, kinema"]
    assert list(row["stages"])[-1] in printed and min(row["stages"].values()) > 0
    assert sum(row["stages"].values()) == pytest.approx(row["seconds"]["median"], rel=0.5)


@pytest.mark.slow
def test_diffusers_in_a_process_of_its_own(bench):
    rows, _ = bench("--part", "process", "--peer", "diffusers")
    ours, theirs = rows["process, kinema"], rows["process, diffusers"]
    assert list(ours["stages"]) == list(theirs["stages"]) and min(theirs["stages"].values()) > 0


def test_a_process_that_fails_says_why():
    with pytest.raises(KinemaError, match="ended with code 3: it said nothing"):
        processes._stages([sys.executable, "-c", "raise SystemExit(3)"])


def test_an_external_command_is_timed(bench, tmp_path):
    log = tmp_path / "log"
    code = f"import sys; open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    rows, _ = bench(
        "--peer",
        "diffusers",
        "--part",
        "generation",
        "--external",
        f'{sys.executable} -c "{code}" {{steps}} {{height}}',
    )
    row = rows["generation, external"]
    assert "error" not in row and min(row["samples"]) > 0.001
    assert set(log.read_text().splitlines()) == {"2 32"}


def test_a_command_that_fails_or_has_unknown_fields_is_refused(bench):
    err = bench("--part", "generation", "--peer", "diffusers", "--external", "false", code=1)
    assert "--external" in err
    request = {**dict.fromkeys(FIELDS, 1), "num_inference_steps": 1}
    with pytest.raises(RequestError, match="'magic' is not a field"):
        External("x {magic}").generation("f", request, torch.device("cpu"), torch.float32)


def test_a_peer_of_the_cpu_says_so_beside_a_gpu():
    gpu = torch.device("cuda", 0)
    assert peers.missing(peers.peer("torch-int8"), gpu) == "runs on cpu alone"
    assert peers.missing(peers.peer("diffusers"), gpu) is None


def test_diffusers_in_bf16_rounds_what_kinema_does_not(bench):
    rows, _ = bench("--peer", "diffusers", "--peer", "diffusers-bf16", "--part", "transformer")
    exact, rounded = (rows[f"transformer, {name}"]["error"]["relative"] for name in ("diffusers", "diffusers-bf16"))
    assert exact < 1e-5 and 1e-4 < rounded < 0.1


def test_unknown_peers_are_refused(bench):
    assert "no peer 'magic'" in bench("--peer", "magic", code=1)


@pytest.mark.slow
def test_compiled_diffusers_beside_kinema(bench):
    rows, _ = bench("--peer", "diffusers-compile")
    for part in ("transformer", "vae"):
        theirs = rows[f"{part}, diffusers-compile"]
        assert "failed" not in theirs, theirs["failed"]
        assert theirs["error"]["relative"] < 1e-4, part
