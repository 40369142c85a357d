"""Native calls that end early: by flags, by handlers of signals, and what is left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch

from kinema.ops.attention import KV
from kinema.ops.attention.cpu import attention
from kinema.ops.common import interrupts, native
from kinema.ops.common.interrupts import Control, Interrupted, StopFlag, check_interrupted, stopped_by

if not native.instruction_sets():
    pytest.skip("the native kernels are not built", allow_module_level=True)

CALLS = [
    "linear", "attention", "attention in int8", "conv3d, few outputs", "conv3d, direct", "conv3d, in place",
    "conv3d, F(2x2)", "conv3d, F(4x4)", "patch_embed", "norm_modulate", "quantize", "qk_norm_rope", "unpatchify",
    "scheduler_step",
]  # fmt: skip
PACKINGS = ["fp32", "bf16", "fp8", "int8", "patch_embed", "conv3d, direct", "conv3d, F(2x2)", "conv3d, F(4x4)"]
SOON = 20.0  # seconds: on a crowded machine; the calls would take longer, or it shows in what they left unwritten
NAN = float("nan")


@pytest.fixture(params=["the host's threads", "own threads"])
def whose(request, lend):
    """Two threads, torch's or the library's."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    lend(request.param == "the host's threads")
    yield
    torch.set_num_threads(before)


@contextmanager
def answering(answer):
    """Calls in this block ask `answer()` whenever they look whether they are to end."""
    asked = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(lambda _: answer())
    control = Control(poll=ctypes.cast(asked, ctypes.c_void_p).value)
    before = native.interruptible
    native.interruptible = lambda function, *arguments: int(function(*arguments, ctypes.byref(control)))
    try:
        yield
    finally:
        native.interruptible = before


def run(call, out):
    return call() if out is None else call(out=out)


def test_every_op_is_called_here(native_calls, native_packings):
    assert list(native_calls) == CALLS and list(native_packings) == PACKINGS


@pytest.mark.parametrize("name", CALLS)
def test_a_flag_that_is_set_lets_nothing_begin(native_calls, name):
    call, out = native_calls[name]
    cache = getattr(call, "keywords", {}).get("cache")
    past = cache.clone() if cache is not None else None
    if out is not None:
        out.fill_(NAN)
    flag = StopFlag()
    flag.set()
    with stopped_by(flag), pytest.raises(Interrupted, match="a flag was set"):
        run(call, out)
    assert out is None or bool(out.isnan().all())
    assert past is None or torch.equal(cache, past)
    flag.clear()
    with stopped_by(flag):
        run(call, out)
    assert out is None or bool(out.isfinite().all())


@pytest.mark.parametrize("name", CALLS)
def test_a_call_ends_whenever_it_is_told_to(native_calls, name):
    """At its first look, its second, and so on; between two calls that are right. A step ends before it begins."""
    call, out = native_calls[name]
    cache = getattr(call, "keywords", {}).get("cache")
    past = cache.clone() if cache is not None else None

    def whole():
        if past is not None:
            cache.copy_(past)
        result = run(call, out)
        return [t.clone() for t in ((result.data, result.scale) if name == "quantize" else (out,))]

    wanted, looks = whole(), 0

    def look():
        nonlocal looks
        looks += 1
        return 0

    with answering(look):
        whole()
    assert looks >= 4 or name == "scheduler_step"
    for last in {1, 2, 3, looks // 2, looks} & set(range(1, looks + 1)):
        asked = 0

        def stop():
            nonlocal asked
            asked += 1
            return asked == last  # noqa: B023

        with answering(stop), pytest.raises(Interrupted):
            whole()
        assert asked == last, "nobody who said stop is asked again"
    assert all(torch.equal(a, b) for a, b in zip(whole(), wanted, strict=True))


def test_a_step_is_whole_or_not_made(native_calls):
    call, out = native_calls["scheduler_step"]
    run(call, out)
    wanted, asked = out.clone(), []
    with answering(lambda: asked.append(1) or 0):
        run(call, out.fill_(NAN))
    assert len(asked) == 1 and torch.equal(out, wanted)
    with answering(lambda: 1), pytest.raises(Interrupted):
        run(call, out.fill_(NAN))
    assert bool(out.isnan().all())


@pytest.mark.parametrize("name", PACKINGS)
def test_packing_ends_whenever_it_is_told_to(native_packings, name):
    pack, looks = native_packings[name], 0

    def look():
        nonlocal looks
        looks += 1
        return 0

    with answering(look):
        pack()
    assert looks >= 3
    flag = StopFlag()
    flag.set()
    with stopped_by(flag), pytest.raises(Interrupted):
        pack()
    for last in (2, looks):
        left = [last]

        def stop():
            left[0] -= 1  # noqa: B023
            return left[0] == 0  # noqa: B023

        with answering(stop), pytest.raises(Interrupted):
            pack()


# ---- in the middle of one long call


@pytest.fixture
def long_call():
    """Attention for which every thread needs seconds, and its result, of which the last head is NaN until the end."""
    q, out = torch.randn(1, 24, 8192, 64), torch.full((1, 8192, 24 * 64), NAN)
    return (lambda: attention(q, KV(q, q), out=out)), out


def ended_within(call, out, kind, trigger):
    """Runs `call`, which `trigger` must end with `kind` while it is within; what was raised."""
    fired = []

    def fire():
        fired.append(time.perf_counter())
        trigger()

    timer = threading.Timer(0.1, fire)
    timer.start()
    try:
        with pytest.raises(kind) as caught:
            call()
        assert time.perf_counter() - fired[0] < SOON
        assert bool(out[..., -64:].isnan().all()), "it was not ended, it was done"
    finally:
        timer.join()
    return caught.value


def interrupt_ourselves(number):
    return lambda: signal.pthread_kill(threading.main_thread().ident, number)


@contextmanager
def handled(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_ctrl_c_ends_a_call(whose, long_call):
    with handled(signal.SIGINT, signal.default_int_handler):
        ended_within(*long_call, KeyboardInterrupt, interrupt_ourselves(signal.SIGINT))


def test_what_a_handler_raises_comes_out_of_the_call(whose, long_call):
    class Enough(Exception):
        pass

    def handler(number, frame):
        raise Enough("of it")

    with handled(signal.SIGUSR1, handler):
        assert str(ended_within(*long_call, Enough, interrupt_ourselves(signal.SIGUSR1))) == "of it"


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_a_flag_ends_a_call(whose, long_call, where):
    call, out = long_call
    flag, raised = StopFlag(), []

    def watched():
        with stopped_by(flag):
            call()

    def beside():
        try:
            watched()
        except BaseException as error:
            raised.append(error)

    if where == "main thread":
        ended_within(watched, out, Interrupted, flag.set)
        return
    thread = threading.Thread(target=beside)
    thread.start()
    time.sleep(0.1)
    flag.set()
    thread.join(SOON)
    assert not thread.is_alive() and type(raised[0]) is Interrupted and bool(out[..., -64:].isnan().all())


def test_a_handler_may_set_the_flag(long_call):
    call, out = long_call
    flag = StopFlag()

    def watched():
        with stopped_by(flag):
            call()

    with handled(signal.SIGUSR1, lambda number, frame: flag.set()):
        ended_within(watched, out, Interrupted, interrupt_ourselves(signal.SIGUSR1))


@pytest.fixture
def impatient(monkeypatch):
    """Calls run handlers at every look."""
    monkeypatch.setattr(interrupts, "POLL_MS", 0)
    monkeypatch.setattr(interrupts, "_idle", [])


def test_a_handler_that_raises_nothing_changes_nothing(impatient, whose):
    """Not even if it calls the ops itself, whose scratch is another then."""
    q = torch.randn(1, 4, 1500, 64)
    small = q[:, :2, :200]
    wanted, wanted_small = attention(q, KV(q, q))[0], attention(small, KV(small, small))[0]
    came, through, done = [], threading.Event(), threading.Event()

    def handler(number, frame):
        came.append(torch.equal(attention(small, KV(small, small))[0], wanted_small))
        through.set()

    def pester():
        while not done.wait(0.002):  # that much of the call goes on in between
            through.clear()
            interrupt_ourselves(signal.SIGUSR1)()
            through.wait(SOON)

    thread = threading.Thread(target=pester)
    with handled(signal.SIGUSR1, handler):
        thread.start()
        try:
            while len(came) < 5:
                assert torch.equal(attention(q, KV(q, q))[0], wanted)
        finally:
            done.set()
            thread.join()
    assert all(came)


def test_two_signals_at_once_are_both_raised(impatient, monkeypatch, long_call):
    """One as the other's context; none is lost in the callback, which can only print what it cannot hand on."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    def handler(number, frame):
        raise ValueError(f"signal {number}")

    def both():
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
        interrupt_ourselves(signal.SIGUSR1)()
        interrupt_ourselves(signal.SIGUSR2)()

    seen = set()
    with handled(signal.SIGUSR1, handler), handled(signal.SIGUSR2, handler):
        error = ended_within(*long_call, ValueError, both)
    while error is not None:
        seen.add(str(error))
        error = error.__context__
    assert seen == {f"signal {int(number)}" for number in (signal.SIGUSR1, signal.SIGUSR2)} and not lost


def test_other_calls_go_on(native_calls):
    """A flag is of its own thread's block."""
    flag, results = StopFlag(), []
    call, out = native_calls["linear"]

    def beside():
        results.append(run(call, out.clone()))

    with stopped_by(flag):
        flag.set()
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        with pytest.raises(Interrupted):
            run(call, out)
    assert len(results) == 1 and torch.equal(run(call, out), results[0])


@pytest.mark.parametrize("which", ["outer", "first", "second"])
def test_blocks_add_up(native_calls, which):
    flags = {name: StopFlag() for name in ("outer", "first", "second")}
    call, out = native_calls["linear"]
    with stopped_by(flags["outer"]):
        with stopped_by(flags["first"], flags["second"]):
            run(call, out)
            check_interrupted()
            flags[which].set()
            with pytest.raises(Interrupted):
                check_interrupted()
            with pytest.raises(Interrupted):
                run(call, out)
        with pytest.raises(Interrupted) if which == "outer" else nullcontext():
            run(call, out)
    run(call, out)
    check_interrupted()


def test_a_flag_says_whether_it_is_set():
    flag = StopFlag()
    assert flag.is_set is False
    flag.set()
    flag.set()
    assert flag.is_set is True
    flag.clear()
    assert flag.is_set is False


def test_a_call_leaves_nothing_for_the_next(native_calls):
    """Listeners come back, but for one that heard something."""
    call, out = native_calls["linear"]
    run(call, out)
    kept = list(interrupts._idle)
    run(call, out)
    assert interrupts._idle == kept and all(listener.raised is None for listener in kept)


def test_an_answer_that_ends_a_call_frees_its_threads(whose, native_calls):
    call, out = native_calls["attention"]
    run(call, out)
    wanted = out.clone()
    for _ in range(20):
        with answering(lambda: 1), pytest.raises(Interrupted):
            run(call, out)
        run(call, out.fill_(NAN))
        assert torch.equal(out, wanted)


def test_the_callback_is_of_the_thread_that_calls(whose, native_calls):
    threads = set()

    def answer():
        threads.add(threading.get_ident())
        return 0

    with answering(answer):
        for call, out in native_calls.values():
            run(call, out)
    assert threads == {threading.get_ident()}


def test_a_flag_list_without_flags_is_refused(native_calls, monkeypatch):
    control = Control(flag_count=1)
    monkeypatch.setattr(native, "interruptible", lambda f, *arguments: int(f(*arguments, ctypes.byref(control))))
    with pytest.raises(ValueError, match="a pointer that is needed is null"):
        run(*native_calls["linear"])


def test_a_program_is_ended_by_ctrl_c(tmp_path):
    """From outside, with Python's own handler: the usual traceback and status."""
    code = """
import os, signal, threading, torch
from kinema.ops.attention import KV
from kinema.ops.attention.cpu import attention
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
torch.set_num_threads(2)
q = torch.randn(1, 24, 8192, 64)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
attention(q, KV(q, q))
print("not ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt") and done.returncode == -signal.SIGINT, done.stderr
    assert not done.stdout and "ignored" not in done.stderr
