"""Where a call leads: the functions that it may reach, file by file, read from the sources alone.

A call is followed where its name says what is called: a function or class of ours, a method of `self`, or of what
HOLDS says a name holds. Each function is entered once, in the order of the sources.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# what the names of the engine hold
HOLDS = {
    "components": "kinema.loading.components.Components",
    "parts": "kinema.loading.components.Components",
    "model": "kinema.families.wan.family.WanModel",
    "geometry": "kinema.families.geometry.Geometry",
    "sizes": "kinema.families.geometry.Geometry",
    "vae": "kinema.families.wan.vae.autoencoder.WanVAE",
    "stats": "kinema.request.stats.Stats",
    "state": "kinema.denoise.state.RequestState",
    "conditioning": "kinema.families.wan.conditioning.WanConditioning",
    "transformer": "kinema.families.wan.transformer.WanTransformer",
    "tiling": "kinema.request.tiling.Tiling",
}


@dataclass
class Walk:
    """calls: (from file, to file) of every call that leaves its file. returns: those to a file that was left before."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    returns: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def climbs(self, rank: Callable[[str], int]) -> list[tuple[str, str]]:
        return [(a, b) for a, b in self.calls if rank(b) > rank(a)]


class _Sources:
    def __init__(self, files: Mapping[str, Path], holds: Mapping[str, str]) -> None:
        self.holds = holds
        self.bodies: dict[str, ast.AST] = {}  # of functions and methods, by their whole names
        self.names: dict[str, dict[str, str]] = {}  # of a module: what its own and imported names stand for
        self.bases: dict[str, list[str]] = {}
        for module, path in files.items():
            self._read(module, ast.parse(path.read_text(encoding="utf-8")))

    def _read(self, module: str, tree: ast.Module) -> None:
        names = self.names.setdefault(module, {})
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names[node.name] = f"{module}.{node.name}"
            if isinstance(node, ast.FunctionDef):
                self.bodies[f"{module}.{node.name}"] = node
            elif isinstance(node, ast.ClassDef):
                self.bases[f"{module}.{node.name}"] = [b.id for b in node.bases if isinstance(b, ast.Name)]
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        self.bodies[f"{module}.{node.name}.{method.name}"] = method

    def module_of(self, name: str) -> str:
        return next(m for m in sorted(self.names, key=len, reverse=True) if name.startswith(f"{m}."))

    def method(self, cls: str, name: str) -> str | None:
        if f"{cls}.{name}" in self.bodies:
            return f"{cls}.{name}"
        names = self.names.get(cls.rpartition(".")[0], {})
        found = (self.method(names[base], name) for base in self.bases.get(cls, []) if base in names)
        return next((method for method in found if method), None)

    def called(self, call: ast.Call, module: str, cls: str | None) -> str | None:
        function = call.func
        if isinstance(function, ast.Name):
            whole = self._whole(module, function.id)
            return whole if whole in self.bodies else self.method(whole, "__init__") if whole else None
        if not isinstance(function, ast.Attribute):
            return None
        value = function.value
        if isinstance(value, ast.Name) and value.id == "self" and cls is not None:
            return self.method(cls, function.attr)
        held = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
        whole = self._whole(module, held)
        if whole is not None and f"{whole}.{function.attr}" in self.bodies:
            return f"{whole}.{function.attr}"
        return self.method(self.holds[held], function.attr) if held in self.holds else None

    def _whole(self, module: str, name: str) -> str | None:
        whole = self.names[module].get(name)
        if whole is None:
            return None
        package, _, last = whole.rpartition(".")  # what a package gives on
        return self.names[package].get(last, whole) if package in self.names else whole


def walk(start: str, files: Mapping[str, Path], holds: Mapping[str, str] = HOLDS) -> Walk:
    sources, found, entered = _Sources(files, holds), Walk(), set[str]()

    def enter(name: str) -> None:
        entered.add(name)
        module = sources.module_of(name)
        owner = name.rpartition(".")[0]
        cls = owner if owner != module else None
        for call in (node for node in ast.walk(sources.bodies[name]) if isinstance(node, ast.Call)):
            target = sources.called(call, module, cls)
            if target is None or target in entered:
                continue
            other = sources.module_of(target)
            if other != module:
                found.calls.append((module, other))
                if other in found.files:
                    found.returns.append((module, other))
            found.files.append(other)
            enter(target)

    found.files.append(sources.module_of(start))
    enter(start)
    return found
