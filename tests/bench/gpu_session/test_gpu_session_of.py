"""What a question is given: the same on a CPU as on a GPU but for the clock and the calls of the device."""

import ctypes
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from kinema.bench.gpu_session import nvml
from kinema.bench.gpu_session.question import Session
from kinema.bench.gpu_session.results import wrong_line
from kinema.bench.gpu_session.session import DrySession, GpuSession

CUDA = torch.cuda


class FakeCuda:
    """torch.cuda of a GPU that is not here; keeps what was called. Only what torch.cuda has can be asked of it."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        assert hasattr(CUDA, name), f"torch.cuda has no {name}"

        def call(*arguments, **options):
            self.calls.append(name)
            return 1 << 20

        return call

    def get_device_properties(self, device):
        return SimpleNamespace(uuid="1234")

    def current_device(self):
        return 0

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self): ...

        def synchronize(self): ...

        def elapsed_time(self, end):
            return 2.0

    class CUDAGraph:
        def replay(self): ...

    @contextmanager
    def graph(self, graph, capture_error_mode):
        yield


@pytest.fixture(params=["dry", "gpu"])
def session(request, monkeypatch, tmp_path):
    lines = []
    if request.param == "dry":
        made = DrySession("q", tmp_path, lines.append, 0.0)
    else:
        monkeypatch.setattr(torch, "cuda", FakeCuda())
        monkeypatch.setattr("kinema.bench.gpu_session.session.GpuTimer", lambda device: lambda call: (call(), 3e-3)[1])
        made = GpuSession("q", tmp_path, lines.append, 0.0)
        made.device = torch.device("cpu")
    made.lines = lines
    return made


def test_it_is_a_session(session):
    wanted = [name for name in vars(Session) if not name.startswith("_")]
    assert all(hasattr(session, name) for name in [*wanted, *Session.__annotations__])
    assert session.pick("full", "small") == ("small" if session.dry else "full")


@pytest.mark.parametrize("flush", [True, False])
def test_samples_are_seconds_of_calls(session, flush):
    calls = []
    samples = session.seconds(lambda: calls.append(1), samples=4, flush=flush)
    assert all(0 < sample < 1 for sample in samples)
    if not session.dry:
        assert samples == [3e-3 if flush else 2e-3] * 4 and len(calls) == 4 + 3, "three of them to warm up"


def test_the_hosts_time_is_that_of_a_call(session):
    calls = []
    samples = session.host_seconds(lambda: calls.append(1), samples=3, calls=5)
    assert all(0 < sample < 1 for sample in samples)
    assert len(calls) == (2 if session.dry else 3 * 5 + 3)


def test_a_profile_is_what_was_done_in_order(session, monkeypatch):
    monkeypatch.setattr("kinema.bench.gpu_session.session.DONE", {"cpu": ("cpu_op",), "cuda": ("cpu_op",)})
    x = torch.randn(64, 64)
    found = session.profile(lambda: (x @ x).relu())
    assert {"aten::mm", "aten::relu"} <= {activity.name for activity in found}
    starts = [activity.start for activity in found]
    assert starts == sorted(starts) and starts[0] == 0.0 and all(0 <= a.seconds < 10 for a in found)
    assert [path.name for path in session.folder.iterdir()] == ["trace0.json"], "kept with the results"


def test_a_recorded_call_and_a_peak(session):
    calls = []
    replay = session.record(lambda: calls.append(1))
    replay()
    assert len(calls) == 1
    peak = session.peak(lambda: calls.append(1))
    assert len(calls) == 2 and 0 < peak.before <= peak.allocated <= peak.reserved


def test_a_result_is_a_line_at_once(session):
    session.report("a", seconds=[1e-3], tile="8 by 8")
    session.skip("b", "not here")
    assert all(wrong_line(line) is None for line in session.lines)
    assert [line["fields"] for line in session.lines] == [{"seconds": [1e-3], "tile": "8 by 8"}, {}]
    assert session.lines[1]["skipped"] == "not here"


def test_what_is_right_has_a_time_and_its_error(session):
    truth = torch.randn(33, 65, dtype=torch.float64)
    plain = truth.to(torch.bfloat16)
    assert session.check("a", plain.clone(), truth, plain=plain)
    session.report("a", seconds=[1e-3])
    assert 0 < session.lines[0]["error"]["relative"] < 4e-3
    assert session.check("exact", truth.float(), truth), "rounded once, against nothing"


@pytest.mark.parametrize("fault", ["nan", "off", "shape"])
def test_what_is_wrong_has_none(session, fault):
    truth = torch.randn(33, 65, dtype=torch.float64)
    plain = truth.to(torch.bfloat16)
    wrong = {"nan": plain * math.nan, "off": plain * 1.02, "shape": plain[1:]}[fault]
    assert not session.check("a", wrong, truth, plain=plain)
    (line,) = session.lines
    assert wrong_line(line) is None and line["refused"].startswith("wrong: errs by") and not line["fields"]
    with pytest.raises(ValueError, match="though its result was refused"):
        session.report("a", seconds=[1e-3])


def test_what_is_rounded_to_eight_bits_on_the_way_may_err_by_them(session):
    truth = torch.randn(33, 65, dtype=torch.float64)
    near = (truth * (1 + 0.008 * torch.randn(33, 65))).to(torch.bfloat16)
    plain = truth.to(torch.bfloat16)
    assert session.check("a", near, truth, plain=plain, quantized=torch.float8_e4m3fn)
    assert not session.check("b", near, truth, plain=plain)


class FakeDriver:
    """libnvidia-ml of a GPU that draws 250 W; it does not tell the temperature."""

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        return 0 if uuid == b"GPU-1234" else 6

    def nvmlDeviceGetClockInfo(self, handle, kind, out):
        out._obj.value = {1: 1755, 2: 2619}[kind]
        return 0

    def nvmlDeviceGetPowerUsage(self, handle, out):
        out._obj.value = 250_500
        return 0

    def nvmlDeviceGetTemperature(self, handle, sensor, out):
        return 3

    nvmlDeviceGetMaxClockInfo = nvmlDeviceGetClockInfo
    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerUsage

    def nvmlSystemGetDriverVersion(self, text, size):
        ctypes.memmove(text, b"580.1\0", 6)
        return 0


def test_clocks_are_the_drivers(monkeypatch):
    monkeypatch.setattr(nvml, "_library", FakeDriver)
    gpu = nvml.Gpu("1234")
    assert gpu.clocks() == gpu.limits() == {"sm_mhz": 1755, "memory_mhz": 2619, "watts": 250.5}
    assert gpu.driver() == "580.1"
    assert nvml.Gpu("another").clocks() == {} and nvml.Gpu("another").driver() is None


def test_without_the_drivers_library_nothing_is_said(monkeypatch):
    monkeypatch.setattr(nvml, "_library", lambda: None)
    assert nvml.Gpu("1234").clocks() == {} and nvml.Gpu("1234").limits() == {} and nvml.Gpu("1234").driver() is None
