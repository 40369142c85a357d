"""Who imports whom, of all of kinema's files: at run time, lazily, and for type checkers alone."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDERS = (("engine", "kinema"), ("kernels", "kinema.ops"), ("benchmarks", "kinema.bench"))


def modules(root: Path) -> dict[str, Path]:
    """{import name: file}"""
    found = {}
    for folder, package in FOLDERS:
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """{module: the modules that it imports}"""
    known = modules(root)
    return {name: _of(path, known) - {name} for name, path in known.items()}


def _of(path: Path, known: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in inside}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, however far around."""
    reaches: dict[str, set[str]] = {}
    for name in graph:
        seen, waiting = set[str](), [*graph[name]]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        reaches[name] = seen
    return sorted({tuple(sorted(m for m in graph if m in reaches[n] and n in reaches[m])) for n in graph} - {()})  # type: ignore[return-value]
