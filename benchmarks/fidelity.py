"""kinema bench fidelity: what every lossy option gains, what it costs, and what fewer steps would cost instead.

The exact run is fp32 with the model's own sampler and the same seeds: a sampler's noise is the same in both runs. An
option that is faster is shown beside the exact run with as many steps as its time or its forwards allow, twice: under
noise of its own, and under the exact run's noise summed to its steps. A noise floor says how far another backend, which
is as exact, is from the exact run: a sampler that decides by chance lets some clips flip for nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.bench.model import add_size_arguments, open_pipeline
from kinema.cli.load import MODEL_HELP, add_load_arguments
from kinema.cli.output import emit
from kinema.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.bench.clip_store import ClipStore
    from kinema.bench.prompt_sets import Asked
    from kinema.bench.report import Report
    from kinema.bench.variants import Variant

TIMED = (
    "a whole generation of one prompt in this process, loaded and warm, decoded and not written; transformer: its steps"
)
EXACTLY = {"precision": "fp32", "quantize_attention": None}
BATCH_TOKENS = 2048  # of clips that are generated together, unless --batch says otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    add_size_arguments(parser)
    parser.add_argument("--option", action="append", metavar="NAME", help="only this; may be given several times")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the exact run (left out: the model's)")
    parser.add_argument(
        "--fewer", type=int, action="append", metavar="N", help="also the exact run with N steps; may be repeated"
    )
    parser.add_argument("--prompts", type=int, default=96, metavar="N", help="clips to compare (%(default)s)")
    parser.add_argument(
        "--set", choices=("judge", "tune"), default="judge", help="which prompts: none is in both sets (%(default)s)"
    )
    parser.add_argument(
        "--prompts-from", metavar="FILE", help="prompts of your own, one a line, for other models: nothing is detected"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="clips to generate together (left out: by their size)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds of timing; 0: none (%(default)s)")
    parser.add_argument("--resume", metavar="FOLDER", help="keep what was found here, and go on from it")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from kinema.bench.clip_store import ClipStore
    from kinema.bench.report import check_report, write_report

    _check(arguments)
    if arguments.json is not None:
        check_report(arguments.json)
    with tempfile.TemporaryDirectory(prefix="kinema-fidelity-") as temporary:
        store = ClipStore(Path(arguments.resume or temporary))
        report = _measure(arguments, store)
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from kinema.bench.lossy import OPTIONS
    from kinema.bench.rounds import say_if_few

    unknown = [name for name in arguments.option or () if name not in OPTIONS]
    if unknown:
        raise RequestError(f"no lossy option {unknown[0]!r}: wanted some of {', '.join(OPTIONS)}")
    least = {"rounds": 0, "prompts": 1, "batch": 1}
    for name, low in least.items():
        given = getattr(arguments, name)
        if given is not None and given < low:
            raise RequestError(f"--{name} {given}: wanted at least {low}")
    if arguments.rounds:
        say_if_few(arguments.rounds)


def _measure(arguments: argparse.Namespace, store: ClipStore) -> Report:
    from kinema.bench.fidelity_costs import equal_cost_steps, mark_dominated, timed
    from kinema.bench.prompt_sets import asked, asked_in
    from kinema.bench.report import model_of, provenance

    number = arguments.prompts
    clips = asked_in(arguments.prompts_from, number) if arguments.prompts_from else asked(arguments.set, number)
    exact, tokens = _exact(arguments)
    steps = exact.request["num_inference_steps"]
    counts = _counts(arguments.fewer or (), steps)
    variants, refused = _variants(arguments, exact)
    rows, share = timed([exact, *variants], clips[0], arguments.rounds)
    counts |= set(equal_cost_steps(list(rows.values()), steps, share))
    fewer = _with_fewer(exact, sorted(counts, reverse=True))
    if fewer:
        rows = {**timed([exact, *fewer], clips[0], arguments.rounds)[0], **rows}
    ordered = [exact, *variants, *fewer]
    _compare(ordered, rows, clips, arguments.batch or min(16, max(1, BATCH_TOKENS // tokens)), store)
    found = [rows[variant.name] for variant in ordered]
    mark_dominated(found)
    return {
        **provenance("fidelity", arguments.words, exact.pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(exact.pipe.folder.path),
        "steps": steps,
        "prompts": len(clips),
        "set": arguments.prompts_from or arguments.set,
        "rows": [*found, *refused],
    }


def _exact(arguments: argparse.Namespace) -> tuple[Variant, int]:
    """The exact run, and the tokens of a clip."""
    from kinema.bench.model import request_of
    from kinema.bench.model_parts import sizes_for
    from kinema.bench.variants import EXACT, Variant

    pipe = open_pipeline(arguments, **EXACTLY)
    sizes = sizes_for(pipe, arguments.tokens, arguments.text_tokens)
    request = request_of(pipe, sizes, arguments.steps or pipe.defaults.num_inference_steps)
    return Variant(EXACT, EXACT, pipe, request), sizes.tokens


def _variants(arguments: argparse.Namespace, exact: Variant) -> tuple[list[Variant], list[Report]]:
    """The noise floor and the options, and rows of those that cannot run here."""
    from kinema.bench.lossy import OPTIONS
    from kinema.bench.variants import FLOOR

    variants, refused = [], []
    for name in (FLOOR, *(arguments.option or OPTIONS)):
        kind = FLOOR if name == FLOOR else OPTIONS[name].kind
        try:
            variants.append(_floor(arguments, exact) if name == FLOOR else _option(arguments, exact, name))
        except UnsupportedError as error:
            refused.append({"name": name, "kind": kind, "failed": str(error)})
    return variants, refused


def _option(arguments: argparse.Namespace, exact: Variant, name: str) -> Variant:
    from kinema.bench.lossy import OPTIONS

    option = OPTIONS[name]
    pipe = open_pipeline(arguments, **{**EXACTLY, **option.load}) if option.load else exact.pipe
    return replace(exact, name=name, kind=option.kind, pipe=pipe, request={**exact.request, **option.request})


def _floor(arguments: argparse.Namespace, exact: Variant) -> Variant:
    """The exact run by another backend: the reference, or what `auto` chooses where the reference is what runs."""
    from kinema.bench.variants import FLOOR

    own = {choice.op: choice.backend for choice in exact.pipe.ops.plan.choices}
    for backend in ("reference", "auto"):
        pipe = open_pipeline(arguments, **EXACTLY, backend=backend)
        if {choice.op: choice.backend for choice in pipe.ops.plan.choices} != own:
            return replace(exact, name=FLOOR, kind=FLOOR, pipe=pipe)
    raise UnsupportedError("no other backend runs here")


def _counts(given: Sequence[int], steps: int) -> set[int]:
    for count in given:
        if not 1 <= count < steps:
            raise RequestError(f"--fewer {count}: wanted at least 1, and fewer than the exact run's {steps}")
    return set(given)


def _with_fewer(exact: Variant, counts: Sequence[int]) -> list[Variant]:
    """Both baselines of each number of steps; the second only where the sampler has a noise path."""
    from kinema.bench.noise_path import has_path
    from kinema.bench.variants import with_steps

    paths = [None, exact.request["num_inference_steps"]] if has_path(exact.pipe.scheduler.core) else [None]
    return [with_steps(exact, count, path_of=path) for count in counts for path in paths]


def _compare(
    variants: Sequence[Variant], rows: dict[str, Report], clips: Sequence[Asked], batch: int, store: ClipStore
) -> None:
    """Generate what the store lacks, and add to each row what its clips show. The exact run is the first."""
    from kinema.bench.clip_figures import figures_of, summary
    from kinema.bench.clip_store import code, digest, files_of
    from kinema.bench.variants import batches, generate
    from kinema.request.progress import steps_bar

    origin = [code(), files_of(variants[0].pipe.folder.path)]
    keys = {v.name: digest([origin, variants[0].settings(), v.settings(), batch]) for v in variants}
    exact = keys[variants[0].name]
    named = [digest([clip.prompt, clip.seed]) for clip in clips]  # the same clip of another number of prompts is found
    with steps_bar(len(variants) * len(clips), unit="clip") as advance:
        truth = None
        for variant in variants:
            key = keys[variant.name]
            found = store.figures(key)
            if truth is None:
                found = {name: figures for name, figures in found.items() if store.has(exact, name)}
            advance(sum(name in found for name in named))
            missing = [i for i, name in enumerate(named) if name not in found]
            for numbers in batches(missing, batch):
                for i, track in zip(numbers, generate(variant, [clips[i] for i in numbers])[0], strict=True):
                    if truth is None:
                        store.keep(exact, named[i], track)
                    found[named[i]] = figures_of(track, store.track(exact, named[i]), clips[i])
                    store.add(key, named[i], found[named[i]])
                    advance()
            ordered = [found[name] for name in named]
            truth = truth or ordered
            rows[variant.name] |= summary(ordered, truth)


def _table(report: Report) -> str:
    """What each row costs, and below that how far it is from the exact run."""
    from kinema.bench.clip_figures import HEAD, said
    from kinema.bench.intervals import Estimate
    from kinema.bench.intervals import said as ratio

    rows = [row for row in report["rows"] if "psnr" in row]
    wide = max(len(row["name"]) for row in report["rows"]) + 2
    lines = [
        f"{report['model']}: {report['steps']} steps, {report['prompts']} clips of the set {report['set']}, on "
        f"{report['target']['device']}",
        f"  {'':{wide}} {'forwards':>9} {'seconds':>9}  {'times faster: whole':27} {'transformer':27}",
    ]
    for row in rows:
        line = f"  {row['name']:{wide}} {1 / row['forwards_share']:8.2f}x"
        if "than_exact" in row:
            times = (ratio(Estimate(**row[key])) for key in ("than_exact", "transformer_than_exact"))
            line += f" {row['seconds']['median']:9.3f}  " + " ".join(f"{time:27}" for time in times)
        lines.append(line + (f"  dominated by {row['dominated']}" if "dominated" in row else ""))
    lines += ["", f"  {'':{wide}} {HEAD}"]
    lines += [f"  {row['name']:{wide}} {said(row)}".rstrip() for row in rows]
    lines += [f"  {row['name']:{wide}} {row['failed']}" for row in report["rows"] if "psnr" not in row]
    return "\n".join(lines)
