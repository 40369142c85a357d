"""What the contract tests of all ops share: who is tested, on what data, and how close is close enough.

A test module of an op sets `OP` and its tests ask for `impl`: they then run for every implementation of that op
and every device that can run here. A module of all ops sets `OPS`, and a test's `of` names the ops that it is for.
Tests of ops working together ask for `ops`. Tests that plant mistakes are marked `planted`: what they ask of is the
cases, which all implementations share, so they run on the reference alone.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kinema.errors import UnsupportedError
from kinema.ops import build_ops, plan_ops
from kinema.ops.common import PRECISIONS, Precision, Target
from kinema.ops.common.native import forced
from kinema.ops.plan import OPS

_spec = importlib.util.spec_from_file_location("native_tables", Path(__file__).parents[1] / "native_tables.py")
native_tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native_tables)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NATIVE = ("cpu", "cpu-direct")
SUITE = os.environ.get(native_tables.SUITE_VARIABLE)
# Triton's interpreter takes longer than all others together
LEFT_OUT = ("triton",) if SUITE == "quick" and not torch.cuda.is_available() else ()

# A narrow dtype between ops is a GPU's precision; a backend that can run one elsewhere says so for this target.
FLOWING = {
    torch.float32: PRECISIONS["cpu"]["fp32"],
    torch.bfloat16: PRECISIONS["cuda"]["bf16"],
    torch.float16: PRECISIONS["cuda"]["fp16"],
}


class Mismatch(AssertionError):
    """An implementation breaks its contract; told apart from other assertions, so that planted mistakes count."""


class Draw:
    """Random tensors that are the same for every implementation: drawn on the CPU in float64, then placed."""

    def __init__(self, seed, device):
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device

    def normal(self, *shape, std=1.0, mean=0.0, dtype=torch.float32):
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return (drawn * std + mean).to(dtype).to(self.device)

    def uniform(self, *shape, low=0.5, high=1.5, dtype=torch.float32):
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (drawn * (high - low) + low).to(dtype).to(self.device)

    def permutation(self, count):
        return torch.randperm(count, generator=self.generator).to(self.device)

    def poison(self, *shape, dtype=torch.float32):
        """An output buffer that gives away whatever is not written."""
        return torch.full(shape, float("nan"), dtype=dtype, device=self.device)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One implementation of one op on one device, beside the op's plain PyTorch reference."""

    op: str
    backend: str
    device: torch.device
    unsupported: object
    functions: SimpleNamespace
    plain: SimpleNamespace
    refuses_float64: bool = False  # where others convert it, so that the cases of float64 catch mistakes too

    def target(self, precision: Precision) -> Target:
        """Where to run, or a skip with the implementation's own reasons."""
        target = Target(self.device, precision)
        reasons = self.unsupported(target)
        if reasons:
            pytest.skip(f"{self.backend} {self.op}: {'; '.join(reasons)}")
        return target

    def flowing(self, dtype: torch.dtype) -> Target:
        """The target whose ops pass `dtype` between them. float64 is the reference's alone."""
        if dtype == torch.float64:
            if self.backend != "reference" or self.refuses_float64:
                pytest.skip("float64 is the reference's")
            return self.target(FLOWING[torch.float32])
        return self.target(FLOWING[dtype])

    def draw(self, seed: int = 0) -> Draw:
        return Draw(seed, self.device)

    def expect(self, holds: bool, message: str) -> None:
        if not holds:
            raise Mismatch(f"{self.backend} {self.op}: {message}")

    def judge(self, call, truth, magnitude, dtype, *, rounded=None, unchanged=(), lost=0.0):
        """Run `call(functions)` and hold its result against a float64 truth. The yardstick.

        Errors are counted elementwise in ulps, which are free of the data's scale and of cancellation: of fp32 at
        `magnitude`, or of the result's `dtype` at `rounded`, whichever is larger. magnitude: what the
        computation gives when all its terms are made positive. rounded: the same of what is only rounded to
        `dtype` on the way, the truth itself if None.
        An implementation may err twice as much as plain PyTorch does in the same dtype, plus one ulp, and plain
        PyTorch itself 4 ulps. Two ulps would hide a result that is cut to 16 bits instead of rounded: so errors
        towards zero and away from it must also balance there. `unchanged`: inputs that must not be written to.
        `lost`: what the hardware's own sums may be off by, as a part of `magnitude`, where the result is fp32.
        """
        before = [tensor.clone() for tensor in unchanged]
        got = call(self.functions)
        for old, new in zip(before, unchanged, strict=True):
            same = torch.nan_to_num(old.double(), nan=0.5) == torch.nan_to_num(new.double(), nan=0.5)
            self.expect(bool(same.all()), "an input was overwritten")
        self.expect(got.dtype == dtype, f"gave {got.dtype}, wanted {dtype}")
        self.expect(got.shape == truth.shape, f"gave {tuple(got.shape)}, wanted {tuple(truth.shape)}")
        ulp = ulps(magnitude, truth.abs() if rounded is None else rounded, dtype)
        error, lean = errors(got, truth, ulp)
        # a GPU's rsqrt and its like are an ulp worse than a CPU's
        allowed, allowed_lean = 4.0 if self.device.type == "cpu" else 5.0, 0.08
        if self.backend != "reference":
            plain_error, plain_lean = errors(call(self.plain), truth, ulp)
            allowed, allowed_lean = 2.0 * plain_error + 1.0, 2.0 * abs(plain_lean) + 0.08
        if dtype == torch.float32:
            allowed += lost * 2.0**23
        if dtype == torch.float64:
            allowed += 40.0  # the truth is float64 itself
        self.expect(error <= allowed, f"error of {error:.3g} ulp, at most {allowed:.3g} allowed")
        if dtype.itemsize == 2 and truth.numel() >= 200:
            self.expect(abs(lean) <= allowed_lean, f"leans by {lean:.3g} ulp, {allowed_lean:.3g} allowed")
        return got

    @staticmethod
    def cut_to_bf16(x: torch.Tensor) -> torch.Tensor:
        """fp32 to bf16 by dropping bits, as a careless narrowing does: a mistake to plant."""
        return (x.float().contiguous().view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)

    def catches(self, check, cases, **mistakes) -> str | None:
        """The first case that notices `mistakes`, functions that replace the implementation's; judged both ways.

        Once as the reference is (by ulps), once as any other implementation is (by the yardstick).
        """
        functions = SimpleNamespace(**{**vars(self.functions), **mistakes})
        judged = [dataclasses.replace(self, backend=b, functions=functions) for b in ("reference", "mutant")]
        for name, case in cases.items():
            if all(_fails(check, mutant, case) for mutant in judged):
                return name
        return None


def ulps(magnitude, rounded, dtype) -> torch.Tensor:
    """The distance between neighbouring numbers where an element's error arises."""
    result, between = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
    smallest = result.smallest_normal * result.eps
    return torch.maximum(rounded * result.eps, magnitude * between.eps).clamp(min=smallest)


def errors(got, truth, ulp) -> tuple[float, float]:
    """The largest error and the mean error away from zero, in ulps; NaN counts as infinite."""
    error = torch.nan_to_num((got.double() - truth) / ulp, nan=float("inf"))
    return float(error.abs().max()), float((error * truth.sign()).mean())


def _fails(check, candidate, case) -> bool:
    try:
        check(candidate, case)
    except Mismatch:
        return True
    except pytest.skip.Exception:
        return False
    return False


def pytest_generate_tests(metafunc):
    planted = metafunc.definition.get_closest_marker("planted") and SUITE != "all"
    if "impl" in metafunc.fixturenames:
        if hasattr(metafunc.module, "OPS"):
            names = getattr(metafunc.function, "of", [op.name for op in metafunc.module.OPS])
            ops = [op for op in metafunc.module.OPS if op.name in names]
            params = [param for op in ops for param in _candidates(op, every_table=False)]
        else:
            params = list(_candidates(metafunc.module.OP, called=_called(metafunc.module)))
        if planted:
            params = [param for param in params if param.values[0][1].backend == "reference"]
        metafunc.parametrize("impl", params, indirect=True)
    if "ops" in metafunc.fixturenames:
        backends = dict.fromkeys(i.backend for op in OPS for i in op.implementations if i.backend not in LEFT_OUT)
        backends = ["reference"] if planted else backends
        params = [pytest.param((b, d), id=f"{b}-{d}") for b in backends for d in DEVICES]
        metafunc.parametrize("ops", params, indirect=True)


def _called(module):
    """What a module of contracts is about, as native_tables calls it: the op, or one of the ways to compute it."""
    return Path(module.__file__).stem.removeprefix("test_").removesuffix("_contract")


def _candidates(op, every_table=True, called=""):
    """every_table: native kernels of each instruction set that has its own code for what is `called`, else of the best
    alone, with the op in the test's name."""
    for implementation in op.implementations:
        if implementation.backend in LEFT_OUT:
            continue
        for name in DEVICES:
            device = torch.device(name)
            targets = [Target(device, p) for kind in PRECISIONS.values() for p in kind.values()]
            reasons = [implementation.unsupported(target) for target in targets]
            # skipped only where no precision can run: the capability record says why, and that is the skip's reason
            marks = [pytest.mark.skip(reason="; ".join(reasons[0]))] if all(reasons) else []  # no GPU, no triton, …
            # native kernels exist once per instruction set; KINEMA_CPU_ISA picks one
            direct = "conv3d, direct" if implementation.backend == "cpu-direct" else called
            tables = native_tables.tables(direct) if implementation.backend in NATIVE and name == "cpu" else []
            for isa in (tables if every_table else tables[:1]) or [None]:
                label = f"{implementation.backend}-{name}" + (f"-{isa}" if isa else "")
                label = label if every_table else f"{op.name}-{implementation.backend}-{name}"
                yield pytest.param((op, implementation, device, isa), id=label, marks=marks)


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory):
    """An op that leaves a part of its result unwritten is noticed, also where no test gives it `out`."""


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tiny tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def impl(request) -> Iterator[Candidate]:
    """One implementation of the module's `OP` on one device."""
    op, implementation, device, isa = request.param
    plain = next(i for i in op.implementations if i.backend == "reference")

    def functions(of):
        module = of.load()
        return SimpleNamespace(**{name: getattr(module, name) for name in op.functions})

    with forced(isa) if isa else nullcontext():
        yield Candidate(
            op.name,
            implementation.backend,
            device,
            implementation.unsupported,
            functions(implementation),
            functions(plain),
            refuses_float64=implementation.backend in NATIVE,
        )


@pytest.fixture
def ops(request):
    """All ops, of one backend where it has them, in fp32 on one device."""
    backend, device = request.param
    try:
        return build_ops(plan_ops(Target(torch.device(device), PRECISIONS[device]["fp32"]), backend))
    except UnsupportedError as error:
        pytest.skip(str(error))
