"""Tuning: the fastest candidate is found and kept, what fails is named, and nothing but `kinema tune` measures."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import kinema.ops.common
from kinema.errors import OutputError
from kinema.ops import build_ops, plan_ops
from kinema.ops.common import PRECISIONS, Target, tuned
from kinema.ops.common.launch import Config, select_config
from kinema.ops.linear import triton as linear
from kinema.ops.linear.triton_tables import LARGE_FP32
from kinema.ops.tuner import LEAST_ROUNDS, LONG, ROUNDS, Tuner, fastest

CPU = torch.device("cpu")
TABLE = {0: tuple(Config({"BLOCK": size}) for size in (16, 32, 64))}
KEY = "linear/large: 8"
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    tuned._choices.cache_clear()
    yield tmp_path / "cache"
    tuned._choices.cache_clear()


class Op:
    """Doubles its input, with tiles from a table with candidates. used: the tile of every call."""

    def __init__(self, **behaviour):
        self.used = []
        self._behaviour = {int(name[1:]): what for name, what in behaviour.items()}

    def __call__(self, x, out=None):
        block = select_config("linear/large", TABLE, CPU, x.shape[0]).blocks["BLOCK"]
        self.used.append(block)
        y = self._behaviour.get(block, lambda y: y)(2.0 * x)
        return y if out is None else out.copy_(y)


def timer(op, seconds):
    """Runs a call and says how long its tile takes."""

    def timed(call):
        call()
        return seconds[op.used[-1]]

    return timed


def fails(y):
    raise RuntimeError("out of resource:\n shared memory")


def tune(op, x, seconds=None, **options):
    tuner = Tuner(CPU, timer(op, seconds or {16: 3.0, 32: 1.0, 64: 2.0}), **options)
    assert torch.equal(tuner.call(op, x), 2.0 * x)
    return tuner


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("seconds", "block"),
    [
        ((3.0, 1.0, 2.0), 32),
        ((3.0, 2.0, 1.0), 64),
        ((1.0, 3.0, 2.0), 16),
        ((1.0, 0.99, 2.0), 16),
        ((1.0, 0.97, 2.0), 32),
    ],
)
def test_the_fastest_is_chosen_and_kept(seconds, block):
    """Unless it is faster than the default by no more than noise."""
    op, x = Op(), drawn(7)
    tuner = tune(op, x, dict(zip((16, 32, 64), seconds, strict=True)))
    (outcome,) = tuner.outcomes
    assert outcome.key == KEY and outcome.seconds == seconds and not outcome.failures
    op(x)
    assert op.used[-1] == block
    tuned._choices.cache_clear()
    op(x)
    assert op.used[-1] == block, "in another process"
    kept = tuned.read("interpreter")[0][KEY]
    assert kept.microseconds == tuple(1e6 * s for s in seconds) and f"BLOCK {block}," in kept.config


def test_without_a_default_that_runs_the_best_of_the_rest_is_chosen():
    assert fastest({1: 2.0, 2: 1.99}) == 2
    assert fastest({}) is None


def test_candidates_take_turns():
    op = Op()
    tune(op, drawn(7), {16: 1e-3, 32: 1e-3, 64: 1e-3})
    timed = op.used[1 + 2 * 3 :]  # after the call itself, and two more with each
    assert timed == [16, 32, 64] * ROUNDS


def test_what_takes_long_has_fewer_rounds():
    op = Op()
    tune(op, drawn(7), dict.fromkeys((16, 32, 64), LONG))
    assert op.used[7:] == [16, 32, 64] * LEAST_ROUNDS


def test_a_kind_of_call_is_measured_once():
    op = Op()
    tuner = tune(op, drawn(7))
    calls = len(op.used)
    tuner.call(op, drawn(8))
    assert len(op.used) == calls + 1
    tuner.call(op, drawn(9))
    assert len(op.used) > calls + 2 and [o.key for o in tuner.outcomes] == [KEY, "linear/large: 16"]


def test_what_is_known_is_not_measured():
    tune(Op(), drawn(7))
    op = Op()
    tuner = tune(op, drawn(7), known=list(tuned.read("interpreter")[0]))
    assert tuner.outcomes == [] and op.used == [32]


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (fails, "RuntimeError: out of resource: shared memory"),
        (lambda y: 1.2 * y, "its result is 0.2 away from the default's"),
        (lambda y: y * float("nan"), "its result is inf away"),
    ],
)
def test_a_candidate_that_fails_is_skipped_and_named(behaviour, why):
    tuner = tune(Op(b32=behaviour), drawn(7))
    (outcome,) = tuner.outcomes
    assert outcome.choice == 2 and outcome.seconds == (3.0, None, 2.0)
    assert list(outcome.failures) == [1] and outcome.failures[1].startswith(why)
    assert tuned.read("interpreter")[0][KEY].microseconds == (3e6, None, 2e6)


def test_other_rounding_is_no_failure():
    assert not tune(Op(b32=lambda y: 1.01 * y), drawn(7)).outcomes[0].failures


def test_a_result_that_is_not_finite_tells_nothing():
    x = drawn(7)
    x[0] = float("inf")
    assert not tune(Op(), x).outcomes[0].failures


def test_if_all_fail_nothing_is_kept():
    op, reported = Op(), []
    op._behaviour = {16: lambda y: y if len(op.used) == 1 else fails(y), 32: fails, 64: fails}
    tuner = tune(op, drawn(7), report=reported.append)
    (outcome,) = tuner.outcomes
    assert reported == [outcome] and outcome.choice is None and sorted(outcome.failures) == [0, 1, 2]
    assert not tuned.file("interpreter").exists()


def test_a_result_in_the_place_of_its_residual_does_not_grow():
    op, x = Op(), drawn(7)
    out = x.clone()
    tuner = Tuner(CPU, timer(op, {16: 3.0, 32: 1.0, 64: 2.0}))
    assert tuner.call(op, out, out=out) is out
    assert torch.equal(out, 2.0 * x)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_folder_that_cannot_be_written_is_said(cache):
    cache.write_text("a file")
    with pytest.raises(OutputError, match="KINEMA_CACHE names another folder"):
        tune(Op(), drawn(7))


@interpreted
def test_a_real_op_is_tuned_among_all_ops(monkeypatch):
    """Its candidates run, in the interpreter, and agree; a call of another op passes by."""
    small = LARGE_FP32[0]
    monkeypatch.setitem(linear.TABLES, "linear/large_fp32", {0: (small, Config({**small.blocks, "COLUMNS": 32}))})
    ops = build_ops(plan_ops(Target(CPU, PRECISIONS["cuda"]["fp32"]), "triton"))
    weight = ops.pack_linear(drawn(40, 24), drawn(40))
    turns = iter([2.0, 1.0] * ROUNDS)
    tuner = Tuner(CPU, lambda call: next(turns))
    watched = tuner.watch(ops)
    x = drawn(1, 19, 24)
    torch.testing.assert_close(watched.linear(x, weight), ops.linear(x, weight))
    watched.norm_modulate(x, eps=1e-6)
    (outcome,) = tuner.outcomes
    assert (outcome.key, outcome.choice, outcome.failures) == ("linear/large_fp32: 32 64 32", 1, {})
    assert watched.plan is ops.plan


@interpreted
def test_no_launch_measures(monkeypatch):
    """A call with a choice of tiles launches its kernel once, the first time and every other."""
    small = LARGE_FP32[0]
    monkeypatch.setitem(linear.TABLES, "linear/large_fp32", {0: (small, Config({**small.blocks, "COLUMNS": 32}))})
    launched = []
    launch = linear.launch
    monkeypatch.setattr(linear, "launch", lambda *args, **kwargs: launched.append(args) or launch(*args, **kwargs))
    weight = linear.pack_linear(drawn(8, 24), target=Target(CPU, PRECISIONS["cuda"]["fp32"]))
    for calls in (1, 2, 3):
        linear.linear(drawn(1, 19, 24), weight)
        assert len(launched) == calls


def test_no_kernel_file_can_measure():
    folder = Path(kinema.ops.common.__file__).parents[1]
    clocks = re.compile(r"autotune|do_bench|perf_counter|monotonic|elapsed_time|cuda\.Event|import time")
    found = [path.name for path in folder.rglob("*.py") if clocks.search(path.read_text(encoding="utf-8"))]
    # which looks once a second how many cores there are
    assert len(list(folder.rglob("*.py"))) > 30 and found == ["cores.py"]
