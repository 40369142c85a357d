"""The rooms of the engine: arrows run down, there is no circle, and only a family's own rooms say its name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from imports import circles, imports, modules
from walk import walk

# from the ground up: a room imports those before it, and itself
ROOMS = (
    *("errors", "env", "fields", "ops", "checkpoints", "schedulers", "media", "buffers", "request", "caches"),
    *(
        "families/base",
        "text",
        "encoders",
        "vae",
        "families",
        "loading",
        "memory",
        "estimate",
        "denoise",
        "pipeline",
        "stream",
    ),
    *("sample", "cli", "bench", "main"),
)
ROOT = {"__init__.py", "__main__.py", "errors.py", "env.py", "pipeline.py", "py.typed"}
ABOVE_ALL = {"kinema.cli.main", "kinema.__main__", "kinema.bench.gpu_session.__main__"}
SEAM = {"kinema.families", *(f"kinema.families.{name}" for name in ("base", "geometry", "layers"))}
MAY_SAY_WAN = ("engine/families/wan/", "engine/families/registry.py", "engine/sample/", "engine/ops/cases.py")


def room(module: str) -> str | None:
    """None: kinema itself, whose names are imported on demand."""
    if module in ABOVE_ALL:
        return "main"
    if module in SEAM:
        return "families/base"
    return module.split(".")[1] if "." in module else None


@pytest.fixture(scope="module")
def graph(root):
    return imports(root)


def test_there_is_no_circle(graph):
    # kinema/__init__.py names what it gives, and the command line the modules of its verbs
    lazily = {"kinema", "kinema.cli.main"}
    assert circles({name: found - lazily for name, found in graph.items()}) == []


def test_arrows_run_down(graph):
    up = [
        f"{name} imports {other}"
        for name, found in sorted(graph.items())
        for other in sorted(found)
        if (here := room(name)) and (there := room(other)) and ROOMS.index(there) > ROOMS.index(here)
    ]
    assert up == []


def test_circles_and_arrows_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [("a", "b", "c")]
    assert ROOMS.index(room("kinema.pipeline")) > ROOMS.index(room("kinema.families.wan.family"))


def test_every_room_is_on_the_list(root, graph):
    assert {found for name in graph if (found := room(name))} == set(ROOMS)
    assert {path.name for path in (root / "engine").iterdir() if path.is_file()} == ROOT


def test_only_a_family_says_its_name(root, graph):
    for name, found in graph.items():
        if name.startswith(("kinema.families.wan", "kinema.sample", "kinema.bench", "kinema.families.registry")):
            continue
        assert not [other for other in found if other.startswith("kinema.families.wan")], name
    for path in (root / "engine").rglob("*.py"):
        where = path.relative_to(root).as_posix()
        if not where.startswith(MAY_SAY_WAN):
            assert not re.search(r"\bWan(?!ted|ts)|\bwan\b", path.read_text()), f"{where} says Wan"


def test_no_file_is_long(root):
    long = {path.name: n for path in (root / "engine").rglob("*.py") if (n := len(path.read_text().splitlines())) > 350}
    assert long == {}


def test_preparing_a_request_goes_down(root):
    """Of `prepare`: calls into a higher room, which are those through the seam, and returns to a file that was left.

    Before the engine had rooms there were 55 returns.
    """
    walked = walk("kinema.pipeline.VideoPipeline.prepare", modules(root))
    assert len(walked.functions) > 180, "little is followed: HOLDS is out of date"
    assert set(walked.climbs(lambda module: ROOMS.index(room(module) or "errors"))) == {
        ("kinema.request.media", "kinema.families.geometry"),
        ("kinema.encoders.prompts", "kinema.loading.components"),
        ("kinema.families.wan.conditioning", "kinema.loading.components"),
    }
    assert len(walked.returns) <= 30
    assert not walked.upward


def test_a_walk_is_counted_as_it_is_read(tmp_path):
    """Arguments before the call that takes them, depth first, and each function once."""
    sources = {
        "k.top": """
            from k.left import one, two
            from k.right import Right

            def start(right):
                three = [two(item) for item in one(right.run())]
                Right(three)
                return one(three)

            def late(): ...
            """,
        "k.left": """
            def one(x): return deep(x)
            def deep(x): ...
            def two(x): ...
            """,
        "k.right": """
            from k.left import deep
            import k.top

            class Base:
                def run(self): return deep(self)

            class Right(Base):
                def __post_init__(self):
                    from k.top import late
                    late()
            """,
    }
    files = {}
    for name, text in sources.items():
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(dedent(text))
    walked = walk("k.top.start", files, {"right": "k.right.Right"})
    names = [name.removeprefix("k.") for name in walked.functions]
    first = ["top.start", "right.Base.run", "left.deep", "left.one", "left.two"]
    assert names == [*first, "right.Right.__post_init__", "top.late"]
    assert walked.returns == [("k.top", "k.left"), ("k.top", "k.left"), ("k.top", "k.right")]
    assert walked.upward == [("k.right", "k.top")]
    assert walked.climbs(["k.left", "k.right", "k.top"].index) == [("k.right", "k.top")]
    assert walked.climbs(["k.top", "k.right", "k.left"].index).count(("k.top", "k.left")) == 3
