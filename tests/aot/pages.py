"""The pages that are made of the table: docs/aot.md, and the expectations in docs/gpu.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chips import CHIPS, Chip, programs_at_once
from measure import Measure
from table import Row, Table

from kinema.bench.anchors import ANCHORS
from kinema.bench.gpus import GPUS, Bound, Gpu, bound

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- expectations: made by `make aot-update` -->", "<!-- end of expectations -->"
# what docs/gpu.md shows: one layer of each published model, and the anchors' counterparts
SHOWN = ("qkv", "out", "up", "down", "modulated", "qk", "cross q", "self", "cross")
SHOWN_MODELS = ("1.3B 32760", "14B 75600")


def write(table: Table) -> None:
    for path, text in pages(table).items():
        path.write_text(text, encoding="utf-8")


def pages(table: Table) -> dict[Path, str]:
    """{file: what it should hold}."""
    guide = DOCS / "gpu.md"
    before, rest = guide.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    expected = "\n".join([BEGIN, "", *_expectations(table), "", *_anchors(table), "", END])
    return {DOCS / "aot.md": "\n".join(_page(table)) + "\n", guide: before + expected + after}


def _page(table: Table) -> Iterator[str]:
    yield "# What the kernels compile to"
    yield ""
    yield (
        f"Made by `make aot-update` from [tests/aot/table.json](../tests/aot/table.json), with Triton {table.triton}. "
        "`make aot` compiles it all again and compares. Nothing here was run: [gpu.md](gpu.md) says what that means."
    )
    yield ""
    yield (
        "A build is what one launch compiles to: registers of a thread (r), bytes of shared memory, programs that one "
        "multiprocessor runs at a time × the warps of one (w), instructions of the hottest loop (i; of all the kernel "
        "if it has none), and products on tensor cores. No build uses local memory, unless the line says so."
    )
    yield ""
    yield (
        "A case is a call of the op. Its bound is the longest of arithmetic, memory and exponentials at the peaks of "
        "the datasheet; *issue* is how long the instructions of a kernel without a loop take to be issued, shown if it "
        "is longer."
    )
    for op in dict.fromkeys(name.split(": ")[0] for name in table.rows):
        yield from ("", f"## {op}", "", *_builds(table, op), "", *_cases(table, op))


def _builds(table: Table, op: str) -> Iterator[str]:
    yield f"| build | {' | '.join(chip.name for chip in CHIPS)} |"
    yield "|---" * (1 + len(CHIPS)) + "|"
    for name, by in table.builds.items():
        if name.startswith(f"{op}: "):
            cells = (_build(by[chip.name], chip) if chip.name in by else "" for chip in CHIPS)
            yield f"| {name.split(': ', 1)[1]} | {' | '.join(cells)} |"


def _build(m: Measure, chip: Chip) -> str:
    parts = [f"{m.registers} r"]
    if m.shared >= 1024:
        parts.append(f"{m.shared / 1024:.0f} K")
    if not chip.hip:
        parts.append(f"{programs_at_once(chip, m.registers, m.warps, m.shared, m.tensor_columns)}×{m.warps} w")
    parts.append(f"{m.loop} i")
    parts += [f"{count} {kind}" for kind, count in m.counts.items() if "MMA" in kind or kind == "MFMA"]
    if m.local:
        parts.append(f"**{m.local} bytes local**")
    return ", ".join(parts)


def _cases(table: Table, op: str) -> Iterator[str]:
    yield f"| case | GFLOP | MB | {' | '.join(gpu.name for gpu in GPUS)} |"
    yield "|---|---:|---:" + "|---:" * len(GPUS) + "|"
    for name, row in table.rows.items():
        if name.startswith(f"{op}: "):
            cells = " | ".join(_bound(table, name, row, gpu) for gpu in GPUS)
            work = f"{_figures(row.count.flops / 1e9)} | {_figures(row.count.bytes / 1e6)}"
            yield f"| {name.split(': ', 1)[1]} | {work} | {cells} |"


def _bound(table: Table, name: str, row: Row, gpu: Gpu) -> str:
    found = bound(gpu, row.count)
    if found is None or isinstance(row.launches.get(gpu.chip), str):
        return "—"
    issue = issue_time(table, name, gpu)
    longer = f", issue {_time(issue)}" if issue is not None and issue > found.microseconds else ""
    return f"{_time(found.microseconds)} {found.by}{longer}"


def issue_time(table: Table, name: str, gpu: Gpu) -> float | None:
    """Microseconds that the instructions of a row's kernels take to be issued; None if one of them has a loop."""
    launches, measures = table.rows[name].launches.get(gpu.chip), table.measures(name, gpu.chip)
    if launches is None or isinstance(launches, str) or isinstance(measures, str):
        return None
    if any(m.loop != m.instructions for m in measures):
        return None
    issued = sum(one.programs * m.warps * m.instructions for one, m in zip(launches, measures, strict=True))
    return issued / (gpu.issued * 1e6)


def _expectations(table: Table) -> Iterator[str]:
    yield f"| case (bf16) | {' | '.join(gpu.name for gpu in GPUS)} |"
    yield "|---" + "|---:" * len(GPUS) + "|"
    for model in SHOWN_MODELS:
        for what in SHOWN:
            for name, row in table.rows.items():
                if name.endswith(f": {model} {what}, bf16"):
                    yield f"| {name.removesuffix(', bf16')} | {' | '.join(_bound(table, name, row, g) for g in GPUS)} |"


def _anchors(table: Table) -> Iterator[str]:
    yield "| published | on | shape there | rate | our case | at that rate | at least | source |"
    yield "|---|---|---|---:|---|---:|---:|---|"
    gpus = {gpu.name: gpu for gpu in GPUS}
    for anchor in ANCHORS:
        name = _counterpart(table.rows, anchor.op, anchor.precision)
        if name is None:
            continue
        row = table.rows[name]
        least = bound(gpus[anchor.gpu], row.count)
        assert isinstance(least, Bound)
        work = row.count.bytes if anchor.by == "memory" else row.count.flops
        rate = f"{anchor.rate} TB/s" if anchor.by == "memory" else f"{anchor.rate:.0f} TFLOP/s"
        cells = [
            *(anchor.implementation, anchor.gpu, anchor.shape, rate, name),
            *(_time(work / (anchor.rate * 1e6)), _time(least.microseconds), anchor.source),
        ]
        yield f"| {' | '.join(cells)} |"


def _counterpart(rows: Iterable[str], op: str, precision: str) -> str | None:
    """The first case of the op in that precision."""
    return next((name for name in rows if name.startswith(f"{op}: ") and name.endswith(f", {precision}")), None)


def _time(microseconds: float) -> str:
    if microseconds >= 1000:
        return f"{_figures(microseconds / 1000)} ms"
    return f"{_figures(microseconds)} µs"


def _figures(value: float) -> str:
    """Three figures."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
