"""Small wrong edits of Triton kernels: bounds, masks, strides, constants, operators, dropped statements.

A suite that stays green on one of them does not test what was changed. Only what Triton compiles is changed (functions
under @triton.jit), one place at a time, and never an axis or a shape, which would not compile and so prove nothing.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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


Changes = dict[str, Any]  # fields of a node of the syntax tree


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
            for node, changes, what in list(_places(function)):
                with _edited(node, changes):
                    changed = whole.replace(before, ast.unparse(function))
                line = node.lineno - function.lineno
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


@contextmanager
def _edited(node: ast.AST, changes: Changes) -> Iterator[None]:
    before = {name: getattr(node, name) for name in changes}
    vars(node).update(changes)
    yield
    vars(node).update(before)


def _places(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, Changes, str]]:
    """(where, what its fields become, in words), in a fixed order."""
    for statement in function.body:
        yield from _inside(statement)


def _inside(node: ast.AST) -> Iterator[tuple[ast.AST, Changes, str]]:
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


def _at(node: ast.AST) -> Iterator[tuple[ast.AST, Changes, str]]:
    words = ast.unparse
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS and "None" not in words(node):
        new = COMPARISONS[type(node.ops[0])]()
        yield node, {"ops": [new, *node.ops[1:]]}, f"{words(node)} with {type(new).__name__}"
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        operator = OPERATORS[type(node.op)]()
        yield node, {"op": operator}, f"{words(node)} with {type(operator).__name__}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd) and not isinstance(node.right, ast.Constant):
        # x & x is x, and stays the node that its parent holds
        yield node, {"right": node.left}, f"{words(node)} without its right side"
        yield node, {"left": node.right}, f"{words(node)} without its left side"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        new_value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.125
        yield node, {"value": new_value}, f"{node.value} becomes {new_value}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
        yield node.func, {"attr": CALLS[node.func.attr]}, f"{words(node)} by {CALLS[node.func.attr]}"
    if isinstance(node, ast.AugAssign):
        yield node, {"op": ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()}, f"{words(node)} turned"
    if isinstance(node, ast.If) and "None" not in words(node.test) and "INTERPRETED" not in words(node.test):
        yield node, {"test": ast.UnaryOp(ast.Not(), node.test)}, f"if {words(node.test)} negated"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _reads_itself(node):
        yield node, {"value": ast.Name(node.targets[0].id, ast.Load())}, f"{words(node)} dropped"


def _reads_itself(node: ast.Assign) -> bool:
    target = node.targets[0]
    assert isinstance(target, ast.Name)
    return any(isinstance(n, ast.Name) and n.id == target.id for n in ast.walk(node.value))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
