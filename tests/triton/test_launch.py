"""Launches: recorded for an architecture, not run on meta tensors, planned once per kind, configured from tables."""

import pytest
import torch

pytest.importorskip("triton")

from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.ops.common import PRECISIONS, Target, tuned
from kinema.ops.common import launch as launches
from kinema.ops.common.launch import Config, forced, launch, recording, remembered, select_config
from kinema.ops.common.triton_descriptor import described, descriptor
from kinema.ops.linear import reference as linear_reference
from kinema.ops.linear import triton as linear_triton
from kinema.ops.norm_modulate.triton import norm_modulate

META, CPU = torch.device("meta"), torch.device("cpu")
TABLE = {0: Config({"BLOCK": 16}), 80: Config({"BLOCK": 64}), 90: Config({"BLOCK": 128}, warps=8)}


def test_on_meta_tensors_an_op_is_its_own_fake():
    x = torch.empty(2, 6, 40, dtype=torch.bfloat16, device=META)
    y = norm_modulate(x, eps=1e-6)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, META)
    q = norm_modulate(x, eps=1e-6, quantize="fp8")
    assert (q.data.dtype, q.scale.shape) == (torch.float8_e4m3fn, (2, 6, 1))


def test_a_recording_keeps_launches_and_runs_nothing():
    x = torch.ones(1, 3, 40)
    untouched = torch.full_like(x, float("nan"))
    with recording(90) as kept:
        norm_modulate(x, eps=1e-6, out=untouched)
    (kept,) = kept.launches
    assert untouched.isnan().all()
    assert kept.arguments["channels"] == 40 and kept.arguments["BLOCK_C"] == 64
    assert set(kept.arguments) == {p.name for p in kept.kernel.params} if hasattr(kept.kernel, "params") else True


@pytest.mark.parametrize(("arch", "block"), [(80, 64), (89, 64), (90, 128), (120, 128)])
def test_the_newest_entry_that_is_not_too_new_is_used(arch, block):
    with recording(arch):
        assert select_config("some", TABLE, META).blocks["BLOCK"] == block


def test_the_interpreter_has_tiles_of_its_own():
    assert select_config("some", TABLE, CPU).blocks["BLOCK"] == 16


def test_configurations_can_be_forced():
    with forced({"some": Config({"BLOCK": 32})}):
        assert select_config("some", TABLE, CPU).blocks["BLOCK"] == 32
        assert select_config("other", TABLE, CPU).blocks["BLOCK"] == 16
    assert select_config("some", TABLE, CPU).blocks["BLOCK"] == 16


# ---- plans


def planned(calls):
    """A plan that notes what it was made of."""

    @remembered
    def plan(device, *kind):
        calls.append(kind)
        return select_config("some", TABLE, device).blocks["BLOCK"], kind

    return plan


def test_a_plan_is_made_once_per_kind_of_call():
    calls = []
    plan = planned(calls)
    for tokens in (3, 5, 3, 3, 5):
        assert plan(CPU, tokens, torch.bfloat16) == (16, (tokens, torch.bfloat16))
    assert calls == [(3, torch.bfloat16), (5, torch.bfloat16)]
    assert planned(calls)(CPU, 3, torch.bfloat16) and len(calls) == 3  # another function's plans are its own


def test_plans_follow_what_is_recorded_and_forced():
    calls = []
    plan = planned(calls)
    assert plan(CPU, 3)[0] == 16
    with recording(90):
        assert plan(CPU, 3)[0] == 128
    with forced({"some": Config({"BLOCK": 32})}):
        assert plan(CPU, 3)[0] == 32
    assert plan(CPU, 3)[0] == 16
    assert len(calls) == 3


def test_plans_are_forgotten_with_the_choices_that_they_rest_on():
    calls = []
    plan = planned(calls)
    plan(CPU, 3)
    tuned._choices.cache_clear()  # as `kinema tune` does
    plan(CPU, 3)
    assert len(calls) == 2


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(launches, "MOST_PLANS", 3)
    tuned._choices.cache_clear()
    calls = []
    plan = planned(calls)
    for tokens in range(20):
        assert plan(CPU, tokens)[1] == (tokens,)
    assert len(tuned.choices(CPU).plans) <= 3


# one of each number that a plan depends on: what must not be shared is not
def laid_out(seed, *shape, skip=0, base=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(*shape[:-1], shape[-1] + skip + base, generator=generator)
    return wide[..., base : base + shape[-1]]


LINEARS = {
    "plain": {},
    "strided x": {"x": {"skip": 8}},
    "unaligned x": {"x": {"base": 3, "skip": 5}},
    "two samples": {"batch": 2},
    "two strided samples": {"batch": 2, "x": {"skip": 8}},
    "more tokens": {"tokens": 21},
    "a gate": {"gate": (1, 1)},
    "a gate of each token": {"gate": (1, 5)},
    "a gate of each sample": {"batch": 2, "gate": (2, 1)},
    "a strided residual": {"residual": {"skip": 16}},
    "out within more": {"out": {"skip": 16}},
}


def test_calls_of_one_kind_never_use_the_plan_of_another():
    """Each again after all the others: bit for bit what it was, and close to the reference."""
    target = Target(CPU, PRECISIONS["cpu"]["fp32"])
    matrix, bias = laid_out(1, 24, 16), laid_out(2, 24)
    weight, truth = (op.pack_linear(matrix, bias, target=target) for op in (linear_triton, linear_reference))

    def call(case):
        batch, tokens = case.get("batch", 1), case.get("tokens", 5)
        x = laid_out(3, batch, tokens, 16, **case.get("x", {}))
        options = {}
        if "gate" in case:
            options["gate"] = laid_out(4, *case["gate"], 24)
        if "gate" in case or "residual" in case:
            options["residual"] = laid_out(5, batch, tokens, 24, **case.get("residual", {}))
        out = laid_out(6, batch, tokens, 24, **case["out"]).fill_(float("nan")) if "out" in case else None
        got = linear_triton.linear(x, weight, **options, out=out)
        assert out is None or got.data_ptr() == out.data_ptr()
        torch.testing.assert_close(got, linear_reference.linear(x, truth, **options), atol=1e-5, rtol=1e-5)
        return got.clone()

    first = {name: call(case) for name, case in LINEARS.items()}
    for name, case in reversed(LINEARS.items()):
        assert torch.equal(call(case), first[name]), name


# ---- launches on a GPU, by a driver that only notes them


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on `cuda:1`."""

    @property
    def device(self):
        return torch.device("cuda", 1)


class Kernel:
    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        return lambda **arguments: self.launched.append((grid, arguments, current[0]))


current = [0]


@pytest.fixture
def gpus(monkeypatch):
    class Entered:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            self.before, current[0] = current[0], entered[-1].index

        def __exit__(self, *_):
            current[0] = self.before

    entered = []
    current[0] = 0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", Entered)
    return entered


def test_the_device_is_entered_only_if_it_is_another(gpus):
    x, kernel, config = torch.zeros(3).as_subclass(OnGpu), Kernel(), Config({"BLOCK": 64}, warps=8, stages=3)
    launch(kernel, (2,), config, numbers=(1, 2), x=x)
    assert gpus == [torch.device("cuda", 1)] and current == [0]
    current[0] = 1
    launch(kernel, (2,), config, numbers=(1, 2), x=x)
    assert len(gpus) == 1
    given = {"BLOCK": 64, "num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
    for grid, arguments, device in kernel.launched:
        assert (grid, device) == ((2,), 1)
        assert arguments.pop("x") is x and arguments == {"numbers": (1, 2), **given}


def test_nothing_is_launched_over_an_empty_grid(gpus):
    kernel = Kernel()
    launch(kernel, (0, 3), Config({}), x=torch.zeros(3).as_subclass(OnGpu))
    assert not kernel.launched and not gpus


# ---- descriptors


def test_a_descriptor_is_checked_once_and_given_to_each_tensor():
    made = descriptor((4, 8), (16, 1), (2, 8), torch.float32)
    one, two = torch.zeros(4, 16)[:, :8], torch.ones(4, 16)[:, :8]
    of_one, of_two = described(one, made), described(two, made)
    assert of_one.base is one and of_two.base is two and made.base.numel() == 0
    wanted = TensorDescriptor.from_tensor(one, [2, 8])
    for name in ("padding", *(n for n in ("round_f32_to_tf32",) if hasattr(wanted, n))):
        assert getattr(of_one, name) == getattr(wanted, name)
    assert (tuple(of_one.shape), tuple(of_one.strides), of_one.block_shape) == ((4, 8), (16, 1), [2, 8])
    assert described(one, None) is one and described(None, made) is None
    with pytest.raises(AssertionError):
        descriptor((4, 8), (3, 1), (2, 8), torch.float32)
