"""Small wrong edits of Triton kernels: bounds, masks, strides, constants, operators, dropped statements.

A suite that stays green on one of them does not test what was changed. Only what Triton compiles is changed (functions
under @triton.jit), one place at a time, and never an axis or a shape, which would not compile and so prove nothing.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
}
CALLS = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "exp2": "exp", "sum": "max"}
# words that say how to compute, not what; and shapes and axes, whose change does not compile
NOT_VALUES = {"axis", "shape", "num_stages", "dtype", "out_dtype", "input_precision", "bitcast", "cache_modifier"}
NOT_VALUES |= {"eviction_policy", "loop_unroll_factor", "flatten", "warp_specialize", "can_reorder"}
SHAPED = {"zeros", "full", "reshape", "arange", "program_id", "num_programs", "multiple_of", "max_contiguous", "split"}
SHAPED |= {
    "permute",
    "trans",
    "join",
    "expand_dims",
    "static_assert",
    "static_range",
    "assume",
    "make_tensor_descriptor",
}


@dataclass(frozen=True)
class Mutant:
    """function: the kernel. what: the edit in words, unique within the file. source: the whole changed file."""

    function: str
    what: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of every kernel in a file."""
    tree = ast.parse(source)
    whole = ast.unparse(tree)
    found = []
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in function.decorator_list):
            before = ast.unparse(function)
            for i, (line, what) in enumerate(list(_edits(function))):
                twin = copy.deepcopy(function)
                _apply(twin, i)
                changed = whole.replace(before, ast.unparse(twin))
                found.append(Mutant(function.name, f"{function.name}:{line}: {what}", changed))
    return found


def sample(found: list[Mutant], each: int, seed: int = 0) -> list[Mutant]:
    """`each` of every kernel, spread over it, the same for the same seed."""
    chosen = []
    for name in dict.fromkeys(m.function for m in found):
        own = [m for m in found if m.function == name]
        picked = random.Random(f"{seed} {name}").sample(range(len(own)), min(each, len(own)))
        chosen += [own[i] for i in sorted(picked)]
    return chosen


def _edits(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    for _, node, what in _places(function):
        yield node.lineno - function.lineno, what


def _apply(function: ast.FunctionDef, number: int) -> None:
    for i, (edit, _, _) in enumerate(_places(function)):
        if i == number:
            edit()
            return
    raise IndexError(number)


def _places(function: ast.FunctionDef) -> Iterator[tuple[object, ast.AST, str]]:
    """(what makes the edit, where, in words), in a fixed order."""
    for statement in function.body:
        yield from _inside(statement)


def _inside(node: ast.AST) -> Iterator[tuple[object, ast.AST, str]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Call) and _name(node) in {"static_assert", "static_print", "device_assert", "assume"}:
        return
    yield from _at(node)
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.keyword) and node.arg in NOT_VALUES:
            continue
        if isinstance(node, ast.Subscript) and name == "slice":
            continue
        if isinstance(node, ast.Call) and _name(node) in SHAPED and name == "args":
            continue
        if isinstance(node, ast.AnnAssign) and name == "annotation":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _inside(child)


def _at(node: ast.AST) -> Iterator[tuple[object, ast.AST, str]]:
    before = ast.unparse(node) if isinstance(node, (ast.expr, ast.stmt)) else ""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS and "None" not in before:
        new = COMPARISONS[type(node.ops[0])]()
        yield _setter(node.ops, 0, new), node, f"{before} with {type(new).__name__}"
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield (
            _attribute(node, "op", OPERATORS[type(node.op)]()),
            node,
            f"{before} with {OPERATORS[type(node.op)].__name__}",
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd) and not isinstance(node.right, ast.Constant):
        yield _become(node, node.left), node, f"{before} without its right side"
        yield _become(node, node.right), node, f"{before} without its left side"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        new_value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.125
        yield _attribute(node, "value", new_value), node, f"{node.value} becomes {new_value}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
        yield _attribute(node.func, "attr", CALLS[node.func.attr]), node, f"{before} by {CALLS[node.func.attr]}"
    if isinstance(node, ast.AugAssign):
        yield _attribute(node, "op", ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()), node, f"{before} turned"
    if (
        isinstance(node, ast.If)
        and "None" not in ast.unparse(node.test)
        and "INTERPRETED" not in ast.unparse(node.test)
    ):
        yield _attribute(node, "test", ast.UnaryOp(ast.Not(), node.test)), node, f"if {ast.unparse(node.test)} negated"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _reads_itself(node):
        yield _attribute(node, "value", ast.Name(node.targets[0].id, ast.Load())), node, f"{before} dropped"


def _reads_itself(node: ast.Assign) -> bool:
    target = node.targets[0]
    assert isinstance(target, ast.Name)
    return any(isinstance(n, ast.Name) and n.id == target.id for n in ast.walk(node.value))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _setter(items: list[ast.cmpop], index: int, new: ast.cmpop) -> object:
    return lambda: items.__setitem__(index, new)


def _attribute(node: ast.AST, name: str, new: object) -> object:
    return lambda: setattr(node, name, new)


def _become(node: ast.BinOp, other: ast.expr) -> object:
    """`other` in place of `node`, which stays the object that its parent holds."""

    def edit() -> None:
        node.left, node.op, node.right = other, ast.BitAnd(), copy.deepcopy(other)

    return edit
