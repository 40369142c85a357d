"""Compiled calls carry all that a contract has, which nothing but the contract lists."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import count
from types import NoneType, UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kinema.ops import OPS, Ops, build_ops, plan_ops, target_for
from kinema.ops.attention import KV, BlockCausal
from kinema.ops.common import Packed, Rope
from kinema.ops.flat import flattener, rebuilder
from kinema.ops.linear import LinearWeight
from kinema.ops.norm_modulate import Norm
from kinema.ops.torch_compile import compilable

PLAIN = build_ops(plan_ops(target_for("cpu"), "reference"))
COMPILABLE = compilable(PLAIN)
TRACED = {op.name: op for op in OPS if op.result is not None}
randn = partial(torch.randn, dtype=torch.float32)
WEIGHTS = [PLAIN.pack_linear(randn(12, 16)), PLAIN.pack_patch_embed(randn(16, 4, 1, 2, 2))]


class Values:
    """Values of annotations, no two of them alike. choice: which member of each union, and which word, they take."""

    def __init__(self, choice: int) -> None:
        self.choice, self.numbers = choice, count(2)

    def of(self, hint: Any) -> Any:
        inner = get_args(hint)
        if get_origin(hint) in (Union, UnionType):
            members = [member for member in inner if member is not NoneType]
            return self.of(members[self.choice % len(members)])
        if get_origin(hint) is Literal:
            return inner[-1 - self.choice % len(inner)]
        if get_origin(hint) is tuple:
            return tuple(self.of(each) for each in (inner[:1] * 2 if inner[-1] is ... else inner))
        if hint is bool:
            return self.choice % 2 == 0
        if hint in (int, float):
            return hint(next(self.numbers))
        if hint is torch.Tensor:
            return torch.full((2, 2, 6, 8, 4), float(next(self.numbers)), dtype=torch.float32)
        if hint is torch.dtype:
            return (torch.bfloat16, torch.float32)[self.choice % 2]
        if issubclass(hint, Packed):
            return next(weight for weight in WEIGHTS if isinstance(weight, hint))
        return hint(**{name: self.of(each) for name, each in hints(hint).items()})


def hints(record: type) -> dict[str, Any]:
    known = get_type_hints(record)
    return {field.name: known[field.name] for field in fields(record)}


def parameters(contract: Any) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(contract.__call__).items() if name not in ("out", "return")}


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are, field by field."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Packed):
        return one is other
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return type(one) is type(other) and one == other


def check_carried(wanted: dict[str, Any], got: dict[str, Any]) -> None:
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not same(wanted[name], got[name])] == []


@pytest.mark.parametrize("choice", range(3))
@pytest.mark.parametrize("name", TRACED)
def test_a_compiled_call_carries_every_argument(name, choice):
    """An argument or a field that a contract gains is among these by itself."""
    contract, seen, values = get_type_hints(Ops)[name], [], Values(choice)

    def implementation(**given: Any) -> Any:
        seen.append(given)
        return TRACED[name].result(**given)

    ops = compilable(replace(PLAIN, **{name: implementation}))
    wanted = {parameter: values.of(hint) for parameter, hint in parameters(contract).items()}
    torch._dynamo.reset()
    torch.compile(lambda: getattr(ops, name)(**wanted), backend="eager", fullgraph=True)()
    (got,) = seen
    check_carried(wanted, got)


@pytest.mark.parametrize("name", TRACED)
def test_what_is_left_out_has_its_default(name):
    contract = get_type_hints(Ops)[name]
    signature = inspect.signature(contract.__call__).parameters
    defaults = {n: signature[n].default for n in parameters(contract) if signature[n].default is not inspect._empty}
    given = {n: Values(0).of(hint) for n, hint in parameters(contract).items() if n not in defaults}
    check_carried({**defaults, **given}, rebuilder(contract)(*flattener(contract)(**given)))


@dataclass(frozen=True)
class Sharper(Norm):
    """A norm that has gained fields."""

    gain: torch.Tensor | None = None
    passes: int = 1
    causal: tuple[BlockCausal, ...] | None = None
    how: Literal["once", "twice"] | None = None


class Grown(Protocol):
    def __call__(
        self,
        x: tuple[torch.Tensor, torch.Tensor | None],
        kv: tuple[KV, ...],
        weights: tuple[LinearWeight, ...],
        *,
        norm: Sharper | Norm | None = None,
        strict: bool = False,
        level: float | int | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


@pytest.mark.parametrize("choice", range(3))
def test_a_contract_may_grow(choice):
    wanted = {name: Values(choice).of(hint) for name, hint in parameters(Grown).items()}
    check_carried(wanted, rebuilder(Grown)(*flattener(Grown)(**wanted)))


def test_an_annotation_that_is_not_known_is_refused():
    class Odd(Protocol):
        def __call__(self, x: torch.Tensor, sizes: dict[str, int]) -> torch.Tensor: ...

    with pytest.raises(TypeError, match=r"sizes is dict\[str, int\], which compiled code does not know"):
        flattener(Odd)


def compiles(function: Callable[..., torch.Tensor], *calls: tuple[Any, ...]) -> int:
    """How often torch.compile compiles it for these calls, whose results are checked."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for arguments in calls:
        assert torch.allclose(compiled(*arguments), function(*arguments), atol=1e-6)
    return counter.frame_count


def test_numbers_that_change_are_symbols():
    """Once for the first number, and once for all others."""
    x, heads, rope = randn(2, 6, 16), randn(1, 2, 6, 8), Rope(randn(3, 4), randn(3, 4))
    packed = COMPILABLE.pack_linear(randn(12, 16))
    turned = [(replace(rope, start=start),) for start in range(4)]
    assert compiles(lambda rope: COMPILABLE.qk_norm_rope(x, 2, rope=rope), *turned) == 2
    cached = [(randn(1, 2, n, 8),) for n in range(2, 6)]
    assert compiles(lambda k: COMPILABLE.attention(heads, (KV(k, k), KV(heads, heads)))[0], *cached) == 2
    causal = [(offset,) for offset in range(4)]
    ask = COMPILABLE.attention
    assert compiles(lambda o: ask(heads, KV(heads, heads), causal=BlockCausal(2, o))[0], *causal) == 2
    grids = [(randn(2, 6 * t, 16), t) for t in range(1, 5)]
    assert compiles(lambda x, t: COMPILABLE.unpatchify(x, (t, 2, 3), (1, 2, 2)), *grids) == 2
    tokens = [(randn(2, n, 16),) for n in range(4, 8)]
    assert compiles(lambda x: COMPILABLE.linear(x, packed, norm=Norm(1e-6)), *tokens) == 2


def test_code_of_one_weight_is_not_run_with_another():
    x, weights = randn(2, 6, 16), [COMPILABLE.pack_linear(randn(n, 16)) for n in (12, 12, 20)]
    assert compiles(lambda x, w: COMPILABLE.linear(x, w), *[(x, w) for w in (*weights, *weights)]) == 3


def test_results_that_are_views_are_copied():
    """The reference splits one head, and one sample's queries, without a copy; operators must not return views."""
    x, heads = randn(1, 6, 16), randn(1, 2, 6, 8)
    assert compiles(lambda x: COMPILABLE.qk_norm_rope(x, 1), (x,)) == 1
    joint = [(lambda q, n=n: COMPILABLE.attention((q, q[:, :, :3]), KV(q, q))[n]) for n in range(2)]
    assert [compiles(part, (heads,)) for part in joint] == [1, 1]
