"""What a run cost: seconds by the clock of its device, and the peak of its own memory."""

import json
import mmap
import threading

import pytest
import torch

from kinema.buffers import peak as peak_memory
from kinema.buffers.machine import held_bytes
from kinema.buffers.peak import PeakMemory, reset_peak
from kinema.request import stats
from kinema.request.stats import GpuClock, Stats

CPU = torch.device("cpu")
MIB = 2**20
resettable = pytest.mark.skipif(not reset_peak(CPU), reason="this system does not let the peak of memory start anew")


def hold(mebibytes):
    """Pages of the system's own, which go back: an allocator may keep what it frees."""
    with mmap.mmap(-1, mebibytes * MIB) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1


class Gpu:
    """A device whose kernels run behind their launches: an event's time is when the device comes to it."""

    def __init__(self):
        self.time, self.waits, self.order = 0.0, 0, []

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    def run(self, seconds):
        self.order.append(seconds)


class Event:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, None

    def record(self, stream):
        assert stream == "stream of cuda:3"
        self.gpu.order.append(self)

    def synchronize(self):
        self.gpu.waits += 1
        for work in self.gpu.order:
            if isinstance(work, Event):
                work.at = self.gpu.time
            else:
                self.gpu.time += work
        self.gpu.order.clear()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    return gpu


def test_stages_of_a_gpu_take_what_its_kernels_take(gpu):
    """However soon the host is done: a stage that waits pays for itself alone, and none makes the host wait."""
    run = Stats(_clock=GpuClock(torch.device("cuda:3")))
    with run.stage("text"):
        gpu.run(0.5)
    for _ in range(3):
        with run.stage("denoise"):
            gpu.run(2.0)
    assert gpu.waits == 0 and list(run.seconds) == ["text", "denoise"]
    with run.stage("decode"):
        gpu.run(1.0)
    run.complete(3)
    assert run.seconds == pytest.approx({"text": 0.5, "denoise": 6.0, "decode": 1.0})
    run.complete(3)
    assert run.total_seconds == pytest.approx(7.5), "what is counted is counted once"


def test_loading_within_a_stage_of_a_gpu_is_its_own(gpu):
    loaded = iter([10.0, 12.0])
    run = Stats(_clock=GpuClock(torch.device("cuda:3")))
    with run.stage("denoise", lambda: next(loaded)):
        gpu.run(2.5)
    run.complete(1)
    assert run.seconds == pytest.approx({"load": 2.0, "denoise": 0.5})


def test_a_stage_that_raises_counts_too(gpu):
    run = Stats(_clock=GpuClock(torch.device("cuda:3")))
    with pytest.raises(ZeroDivisionError), run.stage("denoise"):
        gpu.run(1.5)
        raise ZeroDivisionError
    run.complete(0, interrupted=True)
    assert run.seconds == pytest.approx({"denoise": 1.5}) and run.interrupted


def test_a_summary_is_plain(gpu):
    run = Stats(_clock=GpuClock(torch.device("cuda:3")), _peak=PeakMemory(CPU), seed=1)
    run.complete(2)
    summary = json.loads(json.dumps(run.summary()))
    public = {"seconds", "peak_bytes", "backends", "cache_hits", "seed", "steps", "forwards", "interrupted", "cache"}
    assert set(summary) == public | {"total_seconds"}
    assert summary["steps"] == 2 and summary["peak_bytes"] > 2**20


@resettable
def test_a_peak_is_that_of_its_own_run():
    first = PeakMemory(CPU)
    hold(256)
    second = PeakMemory(CPU)
    hold(64)
    third = PeakMemory(CPU)
    assert first.read() - third.read() > 200 * MIB
    assert 32 * MIB < second.read() - third.read() < 128 * MIB
    assert first.read() > second.read(), "what came after does not lower it"


@resettable
def test_runs_at_once_see_what_the_process_held_while_they_ran():
    outer = PeakMemory(CPU)
    hold(128)
    inner = PeakMemory(CPU)
    hold(256)
    assert outer.read() == inner.read()
    late = PeakMemory(CPU)
    assert late.read() < inner.read() - 200 * MIB


@resettable
def test_peaks_in_threads():
    """None is lost to another's beginning."""
    failures, go = [], threading.Barrier(4, timeout=30)

    def measure():
        go.wait()
        for _ in range(10):
            base = held_bytes(CPU)
            peak = PeakMemory(CPU)
            hold(32)
            if peak.read() - base < 16 * MIB:
                failures.append(peak.read() - base)

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # others free memory meanwhile, so that what is held at the beginning may go; not in most rounds
    assert len(failures) < 10


def test_where_the_mark_cannot_be_set_back_what_is_held_counts(monkeypatch):
    monkeypatch.setattr(peak_memory, "reset_peak", lambda device: False)
    ballast = torch.ones(256 * MIB // 4)  # of an earlier run
    del ballast
    peak = PeakMemory(CPU)
    held = torch.ones(64 * MIB // 4)
    peak.note()
    del held
    earlier = peak_memory.peak_bytes(CPU)
    assert 64 * MIB < peak.read() < earlier
    monkeypatch.setattr(peak_memory, "peak_bytes", lambda device: earlier + 1)
    assert peak.read() == earlier + 1


def test_no_run_is_kept_alive_by_being_measured():
    from kinema.buffers import peak as peak_memory

    before = len(peak_memory._running)
    measured = [PeakMemory(CPU) for _ in range(5)]
    assert len(peak_memory._running) == before + 5
    measured.clear()
    assert len(peak_memory._running) <= before


@resettable
def test_a_run_after_a_larger_one_reports_less(models):
    pipe = models("t2v").ours
    call = {"prompt": "a", "num_inference_steps": 1, "height": 32, "width": 48, "max_sequence_length": 24}
    large = pipe(**call, num_frames=5, callback_on_step_end=lambda *given: hold(256)).stats.peak_bytes
    image = pipe(**call, num_frames=1).stats.peak_bytes
    assert image < large - 200 * MIB


def test_the_host_clock_settles_at_once():
    run = Stats()
    with run.stage("decode"):
        pass
    assert isinstance(run._clock, stats.HostClock) and run.seconds["decode"] > 0
