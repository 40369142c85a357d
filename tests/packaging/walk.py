"""Where a call leads: the functions that it may reach, file by file, read from the sources alone.

A call is followed where its name says what is called: a function or class of ours, a method of `self`, or of what
HOLDS says a name holds. The walk is depth first and in the order of evaluation, arguments before the call that takes
them. Each function is entered once: who has read it does not read it again.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
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
    **dict.fromkeys(("image", "last_image", "video"), "kinema.media.pixels.Pixels"),
    "core": "kinema.schedulers.unipc.UniPCMultistep",
    "stats": "kinema.request.stats.Stats",
    "state": "kinema.denoise.state.RequestState",
    "conditioning": "kinema.families.wan.conditioning.WanConditioning",
    "transformer": "kinema.families.wan.transformer.WanTransformer",
    "tiling": "kinema.request.tiling.Tiling",
}


@dataclass
class Walk:
    """functions: in the order in which they are entered. calls: (from file, to file) of those that leave their file.

    returns: those that enter a function for the first time, in a file that was left before: none of its functions is
    running any more. upward: calls to a file of which a function is still running.
    """

    functions: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    returns: list[tuple[str, str]] = field(default_factory=list)
    upward: list[tuple[str, str]] = field(default_factory=list)

    def climbs(self, rank: Callable[[str], int]) -> list[tuple[str, str]]:
        """Calls into a file of higher rank, or upward."""
        return [(a, b) for a, b in self.calls if rank(b) > rank(a) or (a, b) in self.upward]


class _Sources:
    def __init__(self, files: Mapping[str, Path], holds: Mapping[str, str]) -> None:
        self.holds = holds
        self.bodies: dict[str, ast.FunctionDef] = {}  # functions and methods, by their whole names
        self.owners: dict[str, tuple[str, str | None]] = {}  # of a body: its module, and its class
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
            if isinstance(node, ast.FunctionDef):
                names[node.name] = self._add(node, module, None)
            elif isinstance(node, ast.ClassDef):
                cls = names[node.name] = f"{module}.{node.name}"
                self.bases[cls] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        self._add(method, module, cls)

    def _add(self, body: ast.FunctionDef, module: str, cls: str | None) -> str:
        name = f"{cls or module}.{body.name}"
        self.bodies[name], self.owners[name] = body, (module, cls)
        return name

    def method(self, cls: str, name: str) -> str | None:
        if f"{cls}.{name}" in self.bodies:
            return f"{cls}.{name}"
        bases = (self._whole(cls.rpartition(".")[0], base) for base in self.bases.get(cls, []))
        return next((found for base in bases if base and (found := self.method(base, name))), None)

    def called(self, call: ast.Call, module: str, cls: str | None) -> str | None:
        function = call.func
        if isinstance(function, ast.Name):
            whole = self._whole(module, function.id)
            if whole is None or whole in self.bodies:
                return whole
            return self.method(whole, "__init__") or self.method(whole, "__post_init__")
        if not isinstance(function, ast.Attribute):
            return None
        value = function.value
        if isinstance(value, ast.Name) and value.id == "self" and cls is not None:
            return self.method(cls, function.attr)
        held = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
        whole = self._whole(module, held)
        if whole in self.names:  # a module or a package
            return self._whole(whole, function.attr)
        if whole is not None and (found := self.method(whole, function.attr)):
            return found
        return self.method(self.holds[held], function.attr) if held in self.holds else None

    def _whole(self, module: str, name: str) -> str | None:
        """What a name of a module stands for, where it is defined."""
        whole = self.names.get(module, {}).get(name)
        if whole is None or whole.rpartition(".")[0] in ("", module):
            return whole
        package, _, last = whole.rpartition(".")
        return self._whole(package, last) or whole


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """The calls in a piece of source as they are evaluated."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        children.sort(key=lambda child: not isinstance(child, ast.comprehension))
    for child in children:
        yield from _calls(child)
    if isinstance(node, ast.Call):
        yield node


def walk(start: str, files: Mapping[str, Path], holds: Mapping[str, str] = HOLDS) -> Walk:
    sources, found, left = _Sources(files, holds), Walk(), set[str]()

    def enter(name: str, running: frozenset[str]) -> None:
        found.functions.append(name)
        module, cls = sources.owners[name]
        running |= {module}
        for call in (call for part in sources.bodies[name].body for call in _calls(part)):
            target = sources.called(call, module, cls)
            if target not in sources.bodies:
                continue
            other, new = sources.owners[target][0], target not in found.functions
            if other != module:
                found.calls.append((module, other))
                if other in running:
                    found.upward.append((module, other))
                elif new and other in left:
                    found.returns.append((module, other))
            if new:
                enter(target, running)
        left.add(module)

    enter(start, frozenset())
    return found
