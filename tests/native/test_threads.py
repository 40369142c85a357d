"""How many threads a native call takes; a forked child; the pool itself, from C++. (The cores: test_cores.py.)"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from kinema.ops.common import native
from kinema.ops.common.threads import thread_count, using_threads

if not native.instruction_sets():
    pytest.skip("the native kernels are not built", allow_module_level=True)

ROOT = Path(__file__).parents[2]
FORKED = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(autouse=True)
def number(monkeypatch):
    """Two threads of torch's, which a parallel region has started; as before behind a test. Cores enough for all."""
    monkeypatch.setattr("kinema.ops.common.threads.usable_cores", lambda: 64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    _use_torchs_threads()
    yield
    torch.set_num_threads(before)


def _use_torchs_threads():
    square = torch.ones(400, 400, dtype=torch.float32)
    square @ square
    torch.ones(200_000, dtype=torch.float32).add_(1)


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


# ---- how many


@pytest.fixture
def told(monkeypatch):
    """The number of threads of every native call, as it comes by."""
    numbers, before = [], native.interruptible

    def listening(function, handle, arguments, *others):
        numbers.append(arguments._obj.threads)
        return before(function, handle, arguments, *others)

    monkeypatch.setattr(native, "interruptible", listening)
    return numbers


def test_every_op_takes_the_blocks_number(native_calls, told):
    for count, wanted in ((3, 3), (1, 1), (None, 2)):
        for call, out in native_calls.values():
            with using_threads(count):
                call() if out is None else call(out=out)
        assert set(told) == {wanted} and len(told) == len(native_calls)
        told.clear()


def test_no_kernel_asks_torch_for_its_number():
    asking = [path for path in (ROOT / "kernels").rglob("*.py") if "_num_threads" in path.read_text(encoding="utf-8")]
    assert asking == [ROOT / "kernels" / "common" / "threads.py"]


def test_blocks_nest_and_end():
    with using_threads(3):
        assert (thread_count(), torch.get_num_threads()) == (3, 3)
        with using_threads(1):
            assert (thread_count(), torch.get_num_threads()) == (1, 1)
            with using_threads(None):
                assert (thread_count(), torch.get_num_threads()) == (1, 1)
        assert (thread_count(), torch.get_num_threads()) == (3, 3)
    assert (thread_count(), torch.get_num_threads()) == (2, 2)


def test_an_error_ends_a_block():
    with pytest.raises(KeyError), using_threads(5):
        raise KeyError
    assert (thread_count(), torch.get_num_threads()) == (2, 2)


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match=f"threads is {count}, wanted 1 or more"), using_threads(count):
        pass
    assert torch.get_num_threads() == 2


def test_no_more_than_there_are_cores_unless_asked_for(monkeypatch):
    """A container's share of a large machine: torch's number does not know of it."""
    monkeypatch.setattr("kinema.ops.common.threads.usable_cores", lambda: 1)
    assert (thread_count(), torch.get_num_threads()) == (1, 2)
    with using_threads(None):
        assert (thread_count(), torch.get_num_threads()) == (1, 1)
    with using_threads(3):
        assert (thread_count(), torch.get_num_threads()) == (3, 3)
        with using_threads(None):
            assert (thread_count(), torch.get_num_threads()) == (3, 3)
    assert (thread_count(), torch.get_num_threads()) == (1, 2)


def test_a_block_is_of_its_own_thread():
    """Two at once with different numbers, a third thread without, and ones that start meanwhile."""
    barrier, seen = threading.Barrier(3, timeout=60), {}

    def look(name):
        barrier.wait()  # everybody is in
        seen[name] = [(thread_count(), torch.get_num_threads()) for _ in range(50)]
        barrier.wait()

    def block(name, count):
        torch.get_num_threads()
        with using_threads(count):
            look(name)
        seen[f"behind {name}"] = [(thread_count(), torch.get_num_threads())]

    threads = [threading.Thread(target=block, args=given) for given in (("a", 3), ("b", 5))]
    for thread in threads:
        thread.start()
    barrier.wait()
    seen["main"] = [(thread_count(), torch.get_num_threads())]
    seen["new"] = [in_a_thread(lambda: (thread_count(), torch.get_num_threads()))]
    barrier.wait()
    for thread in threads:
        thread.join()
    seen["afterwards"] = [in_a_thread(lambda: (thread_count(), torch.get_num_threads()))]
    wanted = {"a": (3, 3), "b": (5, 5)}
    assert {name: set(found) for name, found in seen.items()} == {name: {wanted.get(name, (2, 2))} for name in seen}
    assert torch.get_num_threads() == 2


def test_mkl_has_the_number_too():
    """The products of torch that are not OpenMP's own loops."""

    def mkl():
        return re.findall(r"(?:mkl|omp)_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())

    with using_threads(3):
        assert set(mkl()) == {"3"}
        assert set(in_a_thread(mkl)) == {"2"}
    assert set(mkl()) == {"2"}


def test_a_block_costs_nothing_beside_a_step(monkeypatch):
    """It starts no thread: a step enters two."""
    monkeypatch.setattr(threading.Thread, "start", None)
    for count in (3, None):
        with using_threads(count):
            assert torch.get_num_threads() == (count or 2)


def test_blocks_that_overlap_leave_the_number_alone():
    """The one that began first ends first: neither puts back what the other had set."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with using_threads(3):
            first_in.set()
            second_in.wait(60)
        first_out.set()

    def second():  # torch is new to this thread
        first_in.wait(60)
        with using_threads(4):
            second_in.set()
            first_out.wait(60)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 2


def test_results_do_not_depend_on_numbers_at_the_same_time(native_calls):
    call, out = native_calls["attention"]
    call(out=out)
    wrong = []

    def work(count):
        with using_threads(count):
            for _ in range(10):
                if not torch.equal(call()[0], out):
                    wrong.append(count)

    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_threads_than_any_machine_has(native_calls, lend):
    """As many as are of use are started, of the host's as of our own."""
    call, out = native_calls["attention"]
    call(out=out)

    def of_this_process():
        return len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 0

    before = of_this_process()
    for host in (True, False):
        lend(host)
        with using_threads(500):
            assert torch.equal(call()[0], out)
    assert of_this_process() - before <= 2 * 4 * max(2, os.cpu_count() or 1)


# ---- a forked child


def child_of(function, seconds=60):
    """The exit status of a child that runs `function`: 0 if it returned."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException as error:
            sys.stderr.write(f"in the child: {error!r}\n")
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")


@FORKED
def test_a_child_computes(native_calls):
    """Torch's operators on one thread, native ones on as many as before."""
    wanted = {}
    for name, (call, out) in native_calls.items():
        result = call() if out is None else call(out=out)
        wanted[name] = (result.data if out is None else out).clone()

    def compute():
        assert (torch.get_num_threads(), thread_count()) == (1, 2)
        _use_torchs_threads()
        for name, (call, out) in native_calls.items():
            if "cache" in getattr(call, "keywords", {}):
                continue  # renewed by the call before
            result = call() if out is None else call(out=out)
            assert torch.equal(result.data if out is None else out, wanted[name]), name
        with using_threads(3):
            assert (torch.get_num_threads(), thread_count()) == (1, 3)
            _use_torchs_threads()
        assert in_a_thread(lambda: (torch.get_num_threads(), thread_count())) == (1, 2)
        in_a_thread(_use_torchs_threads)

    assert child_of(compute) == 0
    assert (torch.get_num_threads(), thread_count()) == (2, 2)
    _use_torchs_threads()


@FORKED
def test_a_child_of_a_child_computes(native_calls):
    call, out = native_calls["attention"]
    call(out=out)

    def compute():
        assert (torch.get_num_threads(), thread_count()) == (1, 2)
        _use_torchs_threads()
        assert torch.equal(call()[0], out)

    def twice():
        compute()
        assert child_of(compute) == 0

    assert child_of(twice) == 0


@FORKED
@pytest.mark.parametrize("whose", ["the host's threads", "own threads"])
def test_a_child_forked_while_others_compute(native_calls, lend, whose):
    """From another thread than the one that is within a native call, or at the edge of a block."""
    lend(whose == "the host's threads")
    call, out = native_calls["attention"]
    call(out=out)
    done = threading.Event()

    def busy():
        while not done.is_set():
            with using_threads(3):
                call()

    def compute():
        assert torch.equal(call()[0], out)
        with using_threads(2):
            assert torch.equal(call()[0], out)
        _use_torchs_threads()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for pause in (0.0, 0.003, 0.02):
            time.sleep(pause)
            assert child_of(compute) == 0
    finally:
        done.set()
        thread.join()


@FORKED
def test_a_child_forked_within_a_block(native_calls):
    call, out = native_calls["linear"]
    call(out=out)
    wanted = out.clone()

    def compute():
        assert thread_count() == 3
        assert torch.equal(call(out=out.fill_(float("nan"))), wanted)
        _use_torchs_threads()

    with using_threads(3):
        assert child_of(compute) == 0
    assert torch.get_num_threads() == 2


@FORKED
def test_a_child_can_be_interrupted(native_calls):
    call, _ = native_calls["attention"]

    def compute():
        q = torch.randn(1, 24, 8192, 64)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            call.func(q, call.args[1].__class__(q, q))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert child_of(compute, seconds=120) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@FORKED
def test_a_program_that_only_imports_keeps_its_childrens_threads():
    """It is the use of the kernels on a CPU that starts torch's threads."""
    code = """
import os, torch, kinema
torch.set_num_threads(2)
child = os.fork()
if child == 0:
    os._exit(torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout == "2\n", done.stderr


# ---- the pool


def built(program, *words):
    """A C++ program of this folder, compiled with these words."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the library is built to be watched")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip("no C++ compiler")
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ROOT / 'csrc' / 'include'}"]
    source = Path(__file__).with_name(f"{program.name}.cpp")
    subprocess.run([compiler, *options, source, *words, "-o", program], check=True)
    return subprocess.run([program], capture_output=True, text=True, timeout=300)


def test_the_pool_from_many_threads(tmp_path):
    """tests/native/threads.cpp, which `make tsan` watches: callers, hosts, early ends, forks."""
    library = native.LIBRARY.resolve()
    done = built(tmp_path / "threads", library, f"-Wl,-rpath,{library.parent}")
    assert done.returncode == 0 and re.fullmatch(r"\w+: right\n", done.stdout), done.stdout + done.stderr


def test_the_pool_alone(tmp_path):
    """tests/native/pool.cpp, which `make tsan` watches too: who takes which task, and whom a late thread holds up."""
    sources = [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("pool", "job", "call")]
    done = built(tmp_path / "pool", f"-I{ROOT / 'csrc' / 'cpu'}", *sources)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
