"""What questions run on a GPU alone, with stand-ins for the libraries and programs that are not here."""

import math
import shutil
import sys
from types import SimpleNamespace

import pytest
import recorded_vectors as recorded
import torch

from kinema.bench.gpu_session import sanitizer
from kinema.bench.gpu_session.cudnn_fp8 import E4M3, CudnnAttention
from kinema.bench.gpu_session.questions import conformance, counters, host_time
from kinema.bench.gpu_session.sanitizer import SAMPLES
from kinema.bench.gpu_session.watched import LARGE
from kinema.ops.cases import all_cases
from kinema.ops.common.launch import Config, Launch


class Session:
    """Of a GPU: keeps what it is told."""

    dry, device = False, torch.device("cpu")

    def __init__(self, folder):
        self.folder, self.reported, self.skipped = folder, {}, {}

    def pick(self, full, small):
        return full

    def report(self, case, **fields):
        self.reported[case] = fields

    def skip(self, case, reason):
        self.skipped[case] = reason


@pytest.fixture
def session(tmp_path):
    (tmp_path / "kept").mkdir()
    return Session(tmp_path / "kept")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program(name, script): a shell script of that name is found; without a script none is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shell = shutil.which("sh")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("kinema.bench.gpu_session.programs.FOLDERS", ())

    def make(name, script):
        path = folder / name
        path.write_text(f"#!{shell}\n{script}\n")
        path.chmod(0o755)

    return make


class FakeTensor:
    def __init__(self, name, dim=None):
        self.name, self.dim, self.output = name, dim, False

    def set_output(self, output):
        self.output = output
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        return self

    def set_data_type(self, dtype):
        return self


class FakeGraph:
    """Computes what cuDNN documents: every operand in e4m3 times its own scale, weights of at most 1 in e4m3."""

    def __init__(self, **types):
        self.built = False

    def tensor(self, name, dim, stride, data_type):
        return FakeTensor(name, dim)

    def sdpa_fp8(self, **given):
        self.given = given
        self.outputs = [FakeTensor(name) for name in ("o", "stats", "amax_s", "amax_o")]
        return self.outputs

    def build(self, modes):
        self.built = True

    def get_workspace_size(self):
        return 0

    def execute(self, operands, workspace):
        assert self.built and workspace.numel() > 0
        held = {tensor.name: value for tensor, value in operands.items()}
        assert self.outputs[0] in operands and all(not t.output or t in operands for t in self.outputs)
        q, k, v = (held[name].float() * held[f"descale_{name}"] for name in "qkv")
        logits = q @ k.transpose(-1, -2) * self.given["attn_scale"]
        weights = torch.exp(logits - logits.amax(-1, keepdim=True))
        narrow = (weights * held["scale_s"]).to(E4M3).float() * held["descale_s"]
        y = narrow @ v / weights.sum(-1, keepdim=True)
        held["o"].copy_((y * held["scale_o"]).to(E4M3))


@pytest.fixture
def cudnn(monkeypatch):
    types = SimpleNamespace(FP8_E4M3="e4m3", FLOAT="fp32")
    module = SimpleNamespace(data_type=types, heur_mode=SimpleNamespace(A=1, FALLBACK=2), pygraph=FakeGraph)
    monkeypatch.setitem(sys.modules, "cudnn", module)


def test_cudnns_scales_cancel(cudnn):
    """Values and queries of other sizes: each scale is where it belongs, or the result is off by a factor."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 48, 32) * size for size in (3.0, 0.5, 20.0))
    truth = (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(32), -1) @ v).transpose(1, 2).flatten(2)
    call = CudnnAttention(q.bfloat16(), k.bfloat16(), v.bfloat16(), float(truth.abs().amax()))
    y = call()
    assert y.dtype == E4M3 and y.shape == (1, 48, 64)
    error = (call.read(y).float() - truth).norm() / truth.norm()
    assert error < 0.08


def test_a_sanitizers_words_are_kept_and_read(session, program):
    program("compute-sanitizer", f'echo "$@" > {session.folder}/asked; cat {SAMPLES}/memcheck_errors.txt')
    sanitizer.ask_with("memcheck", 20.0, session)
    assert session.reported["memcheck"]["errors"] == 3 and session.reported["memcheck"]["kernels_right"] == ["linear"]
    assert "Invalid __global__ read" in (session.folder / "memcheck.txt").read_text()
    asked = (session.folder / "asked").read_text().split()
    assert asked[:2] == ["--tool", "memcheck"] and asked[-3:] == ["-m", "kinema.bench.gpu_session.watched", "odd"]


def test_a_sanitizer_that_hangs_loses_its_summary_alone(session, program):
    program("compute-sanitizer", "echo '========= COMPUTE-SANITIZER'; echo 'linear: right'; exec sleep 60")
    sanitizer.ask_with("racecheck", 1.0, session)
    fields = session.reported["racecheck"]
    assert not fields["finished"] and fields["errors"] is None and fields["kernels_right"] == ["linear"]


def test_without_its_program_a_question_is_skipped(session, program, monkeypatch):
    monkeypatch.setenv("PATH", "/no/such/folder")
    sanitizer.ask_with("memcheck", 1.0, session)
    counters.ask(session)
    conformance.ask(session)
    assert session.skipped == {
        "memcheck": "needs compute-sanitizer",
        "counters": "needs ncu",
        "build": "needs nvcc",
    }


def test_counters_are_kept_and_read(session, program):
    program("ncu", f'echo "$@" > {session.folder}/asked; cat {SAMPLES}/ncu_details.txt')
    counters.ask(session)
    assert list(session.reported) == ["attention_kernel, launch 0", "linear_kernel, launch 1"]
    asked = (session.folder / "asked").read_text()
    assert "--clock-control none" in asked and "regex:^(attention_kernel|linear_kernel|conv3d_kernel)$" in asked
    assert (session.folder / "ncu.csv").is_file()


def test_counters_that_are_not_permitted_are_skipped_with_that(session, program):
    program("ncu", f"cat {SAMPLES}/ncu_no_permission.txt; exit 1")
    counters.ask(session)
    assert "ERR_NVGPUCTRPERM" in session.skipped["counters"] and not session.reported


def test_what_is_watched_are_cases():
    known = {(case.op, case.name) for case in all_cases()}
    assert set(LARGE.items()) <= known


NVCC = """
while [ "$1" != "-o" ]; do echo "$1" >> {asked}; shift; done
printf '#!/bin/sh\\ncp {sample}/vectors.* "$1"\\n' > "$2"
chmod +x "$2"
"""


def test_a_recording_is_built_run_and_judged(session, program, monkeypatch):
    program("nvcc", NVCC.format(asked=session.folder / "asked", sample=recorded.SAMPLE))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    conformance.ask(session)
    assert "arch=compute_90a,code=sm_90a" in (session.folder / "asked").read_text()
    assert session.reported["recording"]["vectors"] == len(recorded.sample().vectors)
    judged = [fields for case, fields in session.reported.items() if case != "recording"]
    assert all(fields["not_as_expected"] == 0 and fields["numbers"] > 0 for fields in judged)
    assert sorted(p.name for p in session.folder.iterdir()) == ["asked", "vectors.bin", "vectors.json"]
    assert session.skipped == {"mma e4m3": "needs compute capability 89"}


def test_a_program_that_fails_says_why(session, program, monkeypatch):
    program("nvcc", "echo 'error: no such instruction' >&2; exit 2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(RuntimeError, match="nvcc ended with 2: error: no such instruction"):
        conformance.ask(session)


def test_a_bare_kernel_gets_every_argument_in_its_order():
    seen = []
    compiled = {(3, 2, 1): lambda *arguments: seen.append(arguments)}
    kernel = SimpleNamespace(arg_names=["x", "rows", "ROWS"])
    made = Launch(kernel, (3, 2), {"ROWS": 16, "x": "tensor", "rows": 5}, Config({"ROWS": 16}))
    host_time._bare(compiled, made)()
    assert seen == [("tensor", 5, 16)] * 2, "once to load it"
