"""kinema bench replay: what a recorded step gains, what it still costs beside its kernels, and whether recordings last.

Everything of one process and, as far as it is timed, in interleaved rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, open_to_measure
from kinema.cli.output import emit
from kinema.errors import RequestError

if TYPE_CHECKING:
    import torch

    from kinema.bench.report import Report
    from kinema.denoise.replay import Recorder
    from kinema.pipeline import VideoPipeline

TIMED = "a step of one request, or of four requests: the same steps together and in turn; steps in a row, host's clock"
PROMPT = "a red circle moving left"
MOST_STEPS = 1000  # of a request: rounds take one after the other
SAMPLE = 0.1  # seconds: steps follow each other, as in a run, so that each finds in the caches what the last one left
TURN = 8  # steps that one request takes before the next one's turn
TOGETHER = 4
SMALLEST = 0.12  # of the whole step: what the smallest may take
EMPTY = 0.05  # what a step without its kernels may take
HOST = 200e-6  # seconds that Python may take between the replays of two steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", default="sample", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="measured rounds (%(default)s)")
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="requests of all shapes (%(default)s)")
    parser.add_argument("--shapes", type=int, default=40, metavar="N", help="shapes of those requests (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if a mix of requests is recorded twice, needs ever more memory or gives other videos."""
    from kinema.bench.replay_mix import mixed
    from kinema.bench.report import check_report, model_of, provenance, timing, write_report
    from kinema.bench.rounds import interleaved, say_if_few
    from kinema.request.progress import steps_bar

    for name, least in (("rounds", 1), ("requests", 0), ("shapes", 1)):
        if getattr(arguments, name) < least:
            raise RequestError(f"--{name} {getattr(arguments, name)}: wanted at least {least}")
    say_if_few(arguments.rounds)
    if arguments.json is not None:
        check_report(arguments.json)
    pipe = open_to_measure(arguments)
    if pipe.recordings is None:
        raise RequestError("forwards are not recorded with these options: leave out --no-replay and --no-cuda-graphs")
    calls = _calls(arguments, pipe)
    with steps_bar(arguments.rounds + arguments.requests, unit="round") as advance:
        samples = interleaved(calls, arguments.rounds, device=None, shortest=SAMPLE, advance=advance)
        mix = mixed(arguments, advance) if arguments.requests else None
    report: Report = {
        **provenance("replay", arguments.words, pipe.ops.plan, timed=TIMED, backend=arguments.backend),
        **model_of(pipe.folder.path),
        "rows": [timing(name, seconds) for name, seconds in samples.items()],
        "calls": device_calls(Steps(changed(open_to_measure(arguments), nothing))),
        "mix": mix,
    }
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return int(mix is not None and bool(mix["wrong"]))


class Steps:
    """Takes steps of requests without an end."""

    def __init__(self, pipe: VideoPipeline, count: int = 1, **clip: Any) -> None:
        from kinema.request.generation import GenerationRequest

        self._pipe = pipe
        self._requests = [
            GenerationRequest(PROMPT, num_inference_steps=MOST_STEPS, seed=seed, **clip) for seed in range(count)
        ]
        self._states = [pipe.prepare(request) for request in self._requests]

    def __call__(self) -> None:
        """One of all requests together."""
        self._renew(1)
        self._pipe.step(self._states)

    def together(self) -> None:
        self._renew(TURN)
        for _ in range(TURN):
            self._pipe.step(self._states)

    def in_turn(self) -> None:
        self._renew(TURN)
        for state in self._states:
            for _ in range(TURN):
                self._pipe.step([state])

    def _renew(self, steps: int) -> None:
        if any(state.num_steps - state.step_index < steps for state in self._states):
            self._states = [self._pipe.prepare(request) for request in self._requests]


def _calls(arguments: argparse.Namespace, pipe: VideoPipeline) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    eager, small = open_to_measure(arguments, replay=False), smallest_clip(pipe)
    calls: dict[str, Callable[[], object]] = {
        "step, eager": Steps(eager),
        "step": Steps(pipe),
        "smallest step, eager": Steps(eager, **small),
        "smallest step": Steps(pipe, **small),
        "step, no replay": Steps(changed(open_to_measure(arguments), nothing)),
    }
    if pipe.ops.device.type == "cpu":
        calls["step, no kernels"] = Steps(changed(open_to_measure(arguments), _no_kernels))
    requests = Steps(pipe, TOGETHER)
    return {**calls, "four in turn": requests.in_turn, "four together": requests.together}


def smallest_clip(pipe: VideoPipeline) -> dict[str, int]:
    """A second latent frame and a second token beside the first: 4 tokens, or 8 in the two rows of guidance."""
    geometry = pipe.geometry
    frames = geometry.longest(1) + geometry.frame_step
    height, width = (geometry.spatial * patch for patch in geometry.patch[1:])
    return {"num_frames": frames, "height": height, "width": 2 * width}


# ---- recorders that replay less


def changed(pipe: VideoPipeline, change: Callable[[Any], Callable[[], None]]) -> VideoPipeline:
    """The pipeline itself, whose recordings from now on replay what `change` makes of what they would."""
    from kinema.denoise.replay import Recordings, record_on_cpu, record_on_gpu

    real: Recorder = record_on_gpu if pipe.ops.device.type == "cuda" else record_on_cpu

    def record(body: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor, int]:
        replay, output, kept = real(body)
        return change(replay), output, kept

    pipe.recordings = Recordings(record)
    return pipe


def nothing(replay: Callable[[], None]) -> Callable[[], None]:
    return lambda: None


def _no_kernels(replay: Any) -> Callable[[], None]:
    return partial(replay, skip_tasks=True)


# ---- what a step asks of a GPU


def device_calls(step: Callable[[], object]) -> dict[str, int]:
    """Torch's operators in one step beside its replay and its scheduler step: on a GPU each is a launch or a copy."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: dict[str, int] = {}

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not (func.is_view or "empty" in func._schema.name or func._schema.name == "aten::detach"):
                counts[func._schema.name] = counts.get(func._schema.name, 0) + 1
            return func(*args, **(kwargs or {}))

    for _ in range(3):  # the first is eager, the second records, the third embeds its timesteps
        step()
    with torch.no_grad(), Counting():  # type: ignore[no-untyped-call]
        step()
    return counts


def waiting(calls: dict[str, int]) -> list[str]:
    """Those of them for which the host would wait."""
    return [name for name in calls if name in ("aten::_local_scalar_dense", "aten::item", "aten::nonzero")]


# ---- printing


def _table(report: Report) -> str:
    from kinema.bench.cells import duration
    from kinema.bench.intervals import paired_ratio, said

    rows = {row["name"]: row for row in report["rows"]}
    lines = [f"{report['model']}, {report['threads']} threads, {report['target']['device']}"]
    for name, row in rows.items():
        lines.append(f"  {name:22} {duration(row['seconds']['median']):>10}")

    def gain(slow: str, fast: str) -> str:
        return said(paired_ratio(rows[slow]["samples"], rows[fast]["samples"]))

    def share(name: str, limit: float) -> str:
        found = paired_ratio(rows[name]["samples"], rows["step"]["samples"])
        between = "" if found.low is None or found.high is None else f" ({found.low:.1%} to {found.high:.1%})"
        return f"{found.median:.1%}{between} of a step, wanted at most {limit:.0%}"

    lines.append(f"  replaying gains a step {gain('step, eager', 'step')}")
    lines.append(f"  replaying gains the smallest step {gain('smallest step, eager', 'smallest step')}")
    lines.append(f"  the smallest step takes {share('smallest step', SMALLEST)}")
    if "step, no kernels" in rows:
        lines.append(f"  without its kernels a step takes {share('step, no kernels', EMPTY)}")
    host = rows["step, no replay"]["seconds"]["median"]
    lines.append(f"  Python takes {duration(host)} between two replays, wanted at most {duration(HOST)}")
    lines.append(f"  four requests together gain {gain('four in turn', 'four together')} over one after the other")
    calls, waits = report["calls"], waiting(report["calls"])
    named = ", ".join(f"{name.removeprefix('aten::')} {count}" for name, count in sorted(calls.items()))
    lines.append(f"  beside the replay and scheduler_step a step calls {named}; waiting: {', '.join(waits) or 'none'}")
    if report["mix"] is not None:
        lines += [f"  {line}" for line in report["mix"]["said"]]
    return "\n".join(lines)
