"""Pictures of reports: a roofline, speed against fidelity, and time over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kinema.bench.report import Report
from kinema.errors import OutputError, RequestError

Row = dict[str, Any]


def draw(reports: Sequence[Report], folder: Path) -> list[tuple[str, Path]]:
    """(title, file) of every plot that the reports hold enough for, as SVG."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    pyplot = _matplotlib()
    drawn = []
    for title, name, axes in _plots(reports, pyplot):
        axes.spines[["top", "right"]].set_visible(False)
        axes.figure.tight_layout()
        path = folder / f"{name}.svg"
        axes.figure.savefig(path, metadata={"Date": None})
        pyplot.close(axes.figure)
        drawn.append((title, path))
    return drawn


def _plots(reports: Sequence[Report], pyplot: Any) -> Iterator[tuple[str, str, Any]]:
    for report in reports:
        rows = [row for row in report.get("rows", []) if "seconds" in row]
        counted = [row for row in rows if row.get("flops") and row.get("bytes")]
        if counted and "peaks" in report:
            yield "Roofline", f"roofline-{report['benchmark']}", _roofline(counted, report["peaks"], pyplot)
        lossy = [row for row in rows if row.get("psnr") is not None and "than_exact" in row]
        if lossy:
            yield "Speed and fidelity", "fidelity", _fidelity(lossy, pyplot)
    scaling = scaling_of(reports)
    if any(len(points) > 1 for points in scaling.values()):
        yield "Time over tokens", "scaling", _scaling(scaling, pyplot)


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
    """A roof for each unit that multiplies, which all share the slope of the copy."""
    axes = _axes(pyplot, xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="GFLOP/s")
    intensity = [row["flops"] / row["bytes"] for row in rows]
    copied = peaks["copy"]["per_second"]
    for unit in dict.fromkeys(row.get("unit", "fp32") for row in rows):
        if unit not in peaks["flops"]:
            continue
        flops = peaks["flops"][unit]["per_second"]
        ends = sorted((min(intensity) / 2, flops / copied, max(intensity) * 2))
        axes.plot(ends, [min(flops, x * copied) / 1e9 for x in ends], color="grey", linestyle=":")
        axes.annotate(unit, (ends[-1], flops / 1e9), fontsize=7, color="grey", ha="right", va="bottom")
    for implementation in dict.fromkeys(row.get("implementation", "kinema") for row in rows):
        chosen = [row for row in rows if row.get("implementation", "kinema") == implementation]
        axes.scatter(
            [row["flops"] / row["bytes"] for row in chosen],
            [row["flops"] / row["seconds"]["median"] / 1e9 for row in chosen],
            s=12,
            label=implementation,
        )
    axes.legend(frameon=False, fontsize=8)
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


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise RequestError("plots need matplotlib: pip install 'kinema[plots]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kinema"  # the same report gives the same file
    from matplotlib import pyplot

    return pyplot
