"""Pictures of reports: a roofline, medians, speed against fidelity, time over tokens, and quality over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kinema.bench.pyplot import load_pyplot
from kinema.bench.report import Report
from kinema.bench.steps import plot as quality_over_steps
from kinema.errors import OutputError

Row = dict[str, Any]


def draw(reports: Sequence[Report], folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """(title, file) of every plot, as SVG; and the reason for each report that has none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    pyplot = load_pyplot()
    drawn, without = [], []
    used: dict[str, int] = {}

    def save(title: str, name: str, axes: Any) -> None:
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.figure.tight_layout()
        used[name] = used.get(name, 0) + 1
        path = folder / (f"{name}.svg" if used[name] == 1 else f"{name}-{used[name]}.svg")
        axes.figure.savefig(path, metadata={"Date": None})
        pyplot.close(axes.figure)
        drawn.append((title, path))

    for report in reports:
        made = list(_plots(report, pyplot))
        for plot in made:
            save(*plot)
        if report["benchmark"] == "steps":
            quality_over_steps(report, str(folder / "steps.png"))
            drawn.append(("Quality over steps", folder / "steps.png"))
        elif not made:
            without.append(f"No plot of `{report['command']}`: {_why_not(report)}.")
    scaling = scaling_of(reports)
    if any(len(points) > 1 for points in scaling.values()):
        save("Time over tokens", "scaling", _scaling(scaling, pyplot))
    return drawn, without


def _plots(report: Report, pyplot: Any) -> Iterator[tuple[str, str, Any]]:
    """The plots that a single report has data for: (title, name of the file, axes)."""
    benchmark = report["benchmark"]
    rows = [row for row in report.get("rows", []) if "seconds" in row]
    counted = [row for row in rows if row.get("flops") and row.get("bytes")]
    lossy = [row for row in rows if row.get("psnr") is not None and "than_exact" in row]
    if counted and "peaks" in report:
        yield (
            f"Roofline of kinema bench {benchmark}",
            f"roofline-{benchmark}",
            _roofline(counted, report["peaks"], pyplot),
        )
    if lossy:
        yield "Speed and fidelity", "fidelity", _fidelity(lossy, pyplot)
    elif rows and not (counted and "peaks" in report):
        yield f"Medians of kinema bench {benchmark}", benchmark, _medians(rows, pyplot)


def _why_not(report: Report) -> str:
    rows = report.get("rows", [])
    failed = next((row.get("failed") or row.get("refused") for row in rows), None)
    return f"nothing in it was timed ({failed})" if failed else "nothing in it was timed"


def scaling_of(reports: Sequence[Report]) -> dict[str, list[tuple[int, float]]]:
    """{part: [(tokens, seconds)]} of all `bench model` reports, in order of tokens."""
    points: dict[str, list[tuple[int, float]]] = {}
    for report in reports:
        if report["benchmark"] != "model":
            continue
        tokens = 1
        for n in report["grid"]:
            tokens *= n
        for row in report["rows"]:
            part = row["name"].split(",")[0]
            if part in ("transformer", "vae"):
                points.setdefault(f"{part}, {report['target']['precision']}", []).append(
                    (tokens, row["seconds"]["median"])
                )
    return {part: sorted(found) for part, found in points.items()}


def _axes(pyplot: Any, **settings: Any) -> Any:
    _, axes = pyplot.subplots(figsize=(6, 3.6), dpi=120)
    axes.set(**settings)
    return axes


def _roofline(rows: Sequence[Row], peaks: dict[str, Any], pyplot: Any) -> Any:
    """A roof for each arithmetic unit, on the slope of the copy; case numbers are explained on the right."""
    axes = _axes(pyplot, xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="GFLOP/s")
    axes.figure.set_size_inches(8, 4)
    intensity = [row["flops"] / row["bytes"] for row in rows]
    copied = peaks["copy"]["per_second"]
    roofs = {unit: peaks["flops"][unit]["per_second"] for unit in _units(rows) if unit in peaks["flops"]}
    start = min([min(intensity) / 2, *(flops / copied / 4 for flops in roofs.values())])
    for unit, flops in roofs.items():
        ends = sorted((start, flops / copied, max(intensity) * 2))
        axes.plot(ends, [min(flops, x * copied) / 1e9 for x in ends], color="grey", linestyle=":")
        label = f"{unit}, {flops / 1e9:.0f} GFLOP/s"
        axes.annotate(label, (ends[-1], flops / 1e9), fontsize=7, color="grey", ha="right", va="bottom")
    slope = f"  copy, {copied / 1e9:.0f} GB/s"
    axes.annotate(slope, (start, start * copied / 1e9), fontsize=7, color="grey", va="top")
    for implementation in dict.fromkeys(row.get("implementation", "kinema") for row in rows):
        chosen = [_point(row) for row in rows if row.get("implementation", "kinema") == implementation]
        axes.scatter(*zip(*chosen, strict=True), s=12, label=implementation)
    best: dict[str, tuple[float, float]] = {}  # a case is labelled once, at its fastest implementation
    for row in rows:
        case = f"{row['op']} {row['case']}" if "op" in row and "case" in row else str(row["name"])
        best[case] = max(best.get(case, (0.0, 0.0)), _point(row), key=lambda point: point[1])
    for number, place in enumerate(best.values(), 1):
        axes.annotate(str(number), place, fontsize=6, textcoords="offset points", xytext=(3, 2))
    names = "\n".join(f"{number}  {case}" for number, case in enumerate(best, 1))
    axes.text(1.02, 1.0, names, transform=axes.transAxes, fontsize=min(7.0, 200 / len(best)), va="top")
    axes.legend(frameon=False, fontsize=8)
    return axes


def _units(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.get("unit", "fp32") for row in rows))


def _point(row: Row) -> tuple[float, float]:
    """FLOPs a byte, and GFLOP/s."""
    return row["flops"] / row["bytes"], row["flops"] / row["seconds"]["median"] / 1e9


def _medians(rows: Sequence[Row], pyplot: Any) -> Any:
    """A bar for each row, with its interval where there is one."""
    _, axes = pyplot.subplots(figsize=(6, 0.8 + 0.25 * len(rows)), dpi=120)
    for place, row in enumerate(reversed(rows)):
        seconds = row["seconds"]
        axes.barh(place, seconds["median"], color="tab:blue", height=0.6)
        if seconds.get("low") is not None:
            axes.plot([seconds["low"], seconds["high"]], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=6)
    axes.set(xlabel="seconds, median and its 95 % interval", xlim=(0, None))
    return axes


def _fidelity(rows: Sequence[Row], pyplot: Any) -> Any:
    axes = _axes(pyplot, xlabel="times faster than the exact run", ylabel="PSNR against it, dB")
    for row in rows:
        x, y = row["than_exact"]["median"], row["psnr"]
        axes.scatter([x], [y], color="tab:grey" if row.get("dominated") else "tab:blue", s=16)
        axes.annotate(row["name"], (x, y), fontsize=7, textcoords="offset points", xytext=(4, 3))
    return axes


def _scaling(points: dict[str, list[tuple[int, float]]], pyplot: Any) -> Any:
    axes = _axes(pyplot, xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
    for part, found in points.items():
        axes.plot([tokens for tokens, _ in found], [seconds for _, seconds in found], marker="o", label=part)
    axes.legend(frameon=False, fontsize=8)
    return axes
