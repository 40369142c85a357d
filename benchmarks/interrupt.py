"""kinema bench interrupt: how long ctrl-C, and a flag that another thread sets, take to end native work.

Each comes at a random moment, repeatedly. The work is that of Wan 1.3B at 480p, with random weights.
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from kinema.cli.output import emit
from kinema.cli.parser import text
from kinema.errors import RequestError

if TYPE_CHECKING:
    import torch

    from kinema.bench.report import Report
    from kinema.checkpoints import Shapes
    from kinema.ops import Ops

TIMED = "from the signal, or the setting of a flag, until what it raises has left the native call"
LIMIT = 0.2  # seconds that the 95th percentile of interruptions may take
WAYS = ("ctrl-C", "a flag")


@dataclass(frozen=True)
class Work:
    """What is interrupted. prepare: makes its weights and inputs. seconds: the latest moment of an interruption, since
    a whole attention takes a minute; shorter work is repeated."""

    name: str
    prepare: Callable[[Ops, argparse.Namespace], Callable[[], Any]]
    seconds: float = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", type=text, default="", metavar="TEXT", help="only work with this in its name")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="interruptions of each kind (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32760, metavar="N", help="of a clip (%(default)s)")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="of the whole forward (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (left out: torch's choice)")
    parser.add_argument("--json", metavar="FILE", help="write the report to this file")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if one of the percentiles is above the limit."""
    import torch

    from kinema.bench.report import check_report, provenance, timing, write_report
    from kinema.ops import build_ops, plan_ops, target_for
    from kinema.ops.common.threads import using_threads
    from kinema.request.progress import steps_bar

    for name, least in (("rounds", 1), ("tokens", 1), ("layers", 1)):
        if getattr(arguments, name) < least:
            raise RequestError(f"--{name} {getattr(arguments, name)}: wanted at least {least}")
    if arguments.json is not None:
        check_report(arguments.json)
    works = [work for work in WORKS if arguments.case in work.name]
    if not works:
        raise RequestError(f"nothing has {arguments.case!r} in its name: {', '.join(work.name for work in WORKS)}")
    plan = plan_ops(target_for("cpu"), "cpu")
    ops, random, rows = build_ops(plan), Random(arguments.seed), []
    with (
        using_threads(arguments.threads),
        torch.inference_mode(),
        _default_handler(),
        steps_bar(len(works) * len(WAYS) * arguments.rounds, unit="interruption") as advance,
    ):
        head = provenance("interrupt", arguments.words, plan, timed=TIMED, backend="cpu")
        for work in works:
            call = work.prepare(ops, arguments)
            samples: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(arguments.rounds):
                for way in WAYS:
                    samples[way].append(interrupted(call, way, random.uniform(0.0, work.seconds)))
                    advance()
            rows += [
                {**timing(f"{work.name}, {way}", found), "p95": percentile(found)} for way, found in samples.items()
            ]
    report = {**head, "tokens": arguments.tokens, "layers": arguments.layers, "rows": rows}
    if arguments.json is not None:
        write_report(arguments.json, report)
    emit(_table(report))
    return int(any(row["p95"] > LIMIT for row in rows))


def interrupted(call: Callable[[], Any], way: str, after: float) -> float:
    """Seconds from an interruption until it has left `call`, which is repeated for `after` seconds first."""
    from kinema.ops.common.interrupts import Interrupted, StopFlag, stopped_by

    flag, moment = StopFlag(), []
    main = threading.get_ident()

    def interrupt() -> None:
        moment.append(time.perf_counter())
        if way == "ctrl-C":
            signal.pthread_kill(main, signal.SIGINT)
        else:
            flag.set()

    timer = threading.Timer(after, interrupt)
    try:
        with stopped_by(flag):
            timer.start()
            while True:
                call()
    except (KeyboardInterrupt, Interrupted):
        end = time.perf_counter()
    if not moment:
        timer.cancel()
        raise KeyboardInterrupt  # the user's own
    timer.join()
    return end - moment[0]


@contextmanager
def _default_handler() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever handler the process was started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def percentile(samples: list[float], share: float = 0.95) -> float:
    """The smallest sample that a `share` of the samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


# ---- the work


def _attention(ops: Ops, arguments: argparse.Namespace) -> Callable[[], Any]:
    import torch

    from kinema.ops.attention import KV

    q, k, v = (torch.randn(1, 12, arguments.tokens, 128, dtype=torch.float32, device="cpu") for _ in range(3))
    out = torch.empty(1, arguments.tokens, 1536, dtype=torch.float32, device="cpu")
    return partial(ops.attention, q, KV(k, v), out=out)


def _linear(ops: Ops, arguments: argparse.Namespace) -> Callable[[], Any]:
    import torch

    weight = ops.pack_linear(
        torch.randn(8960, 1536, dtype=torch.float32, device="cpu"), torch.randn(8960, dtype=torch.float32, device="cpu")
    )
    x, out = (
        torch.randn(1, arguments.tokens, 1536, dtype=torch.float32, device="cpu"),
        torch.empty(1, arguments.tokens, 8960, dtype=torch.float32, device="cpu"),
    )
    return partial(ops.linear, x, weight, activation="gelu_tanh", out=out)


def _conv3d(out: int, ops: Ops, arguments: argparse.Namespace) -> Callable[[], Any]:
    """Four frames of 480 × 832, with their past."""
    import torch

    weight = ops.pack_conv3d(
        torch.randn(out, 96, 3, 3, 3, dtype=torch.float32, device="cpu"),
        torch.randn(out, dtype=torch.float32, device="cpu"),
    )
    x, cache = (
        torch.randn(1, count, 480, 832, 96, dtype=torch.float32, device="cpu").movedim(-1, 1) for count in (4, 2)
    )
    return partial(
        ops.conv3d, x, weight, norm=torch.rand(96, dtype=torch.float32, device="cpu"), activation="silu", cache=cache
    )


class _Alike(Mapping[str, "torch.Tensor"]):
    """Random tensors of these shapes, one of each shape."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._made: dict[tuple[int, ...], torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        shape = self._shapes[name]
        if shape not in self._made:
            self._made[shape] = torch.randn(shape, dtype=torch.float32, device="cpu").mul_(0.02)
        return self._made[shape]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _transformer(layers: int | None, ops: Ops) -> Callable[[], Any]:
    """Packs a transformer of Wan 1.3B's shapes."""
    from kinema.bench.published_configs import TRANSFORMER_1_3B
    from kinema.checkpoints import Weights
    from kinema.families.wan.config import WanConfig, tensor_shapes
    from kinema.families.wan.transformer import WanTransformer

    config = WanConfig.from_dict(TRANSFORMER_1_3B)
    config = replace(config, num_layers=layers or config.num_layers)
    weights = Weights(_Alike(tensor_shapes(config)))
    return partial(WanTransformer, config, weights, ops)


def _packing(ops: Ops, arguments: argparse.Namespace) -> Callable[[], Any]:
    return _transformer(None, ops)


def _forward(ops: Ops, arguments: argparse.Namespace) -> Callable[[], Any]:
    import torch

    from kinema.bench.model_parts import grid_of

    model = _transformer(arguments.layers, ops)()
    size = [n * p for n, p in zip(grid_of(arguments.tokens), model.config.patch_size, strict=True)]
    context = model.encode_context(torch.randn(1, 512, model.config.text_dim, dtype=torch.float32, device="cpu"))
    return partial(
        model,
        torch.randn(1, model.config.in_channels, *size, dtype=torch.float32, device="cpu"),
        torch.tensor([500.0], dtype=torch.float32, device="cpu"),
        context,
    )


WORKS = (
    Work("attention", _attention),
    Work("linear", _linear),
    Work("conv3d 96 to 96", partial(_conv3d, 96)),
    Work("conv3d 96 to 3", partial(_conv3d, 3)),
    Work("packing", _packing, 5.0),
    Work("a forward", _forward, 20.0),
)


def _table(report: Report) -> str:
    lines = [f"{report['tokens']} tokens, {report['threads']} threads; at most {LIMIT} s in 95 of 100"]
    for row in report["rows"]:
        seconds = row["seconds"]
        lines.append(
            f"{row['name']:26} median {seconds['median'] * 1e3:6.1f} ms   95 % {row['p95'] * 1e3:6.1f} ms   "
            f"largest {seconds['max'] * 1e3:6.1f} ms   of {len(row['samples'])}"
        )
    return "\n".join(lines)
