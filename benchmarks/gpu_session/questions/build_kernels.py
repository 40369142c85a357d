"""Builds the Triton kernels that the other questions launch, on all cores; asks if those built ahead are used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kinema.bench.gpu_session.kernel_cache import take
from kinema.bench.gpu_session.question import Question, Session
from kinema.ops.calls import Inputs
from kinema.ops.cases import all_cases
from kinema.ops.common import PRECISIONS, Target

AHEAD = "KINEMA_TRITON_AHEAD"  # the folder that --triton-cache names
BEGUN, LIMIT = 38.0, 55.0  # seconds until the last build is started, and until all have ended
LAUNCHED = ("unpatchify", "sample 80")
SMALL = "unpatchify: sample 80, bf16"  # of a dry run, built for
STAND_IN = 90


def ask(session: Session) -> None:
    cache = session.folder / "cache" if session.dry else Path(os.environ["TRITON_CACHE_DIR"])
    if session.dry:
        shutil.rmtree(cache, ignore_errors=True)
    _ahead(session, cache)
    started = time.perf_counter()
    built, wanted = _build(session, cache)
    seconds = time.perf_counter() - started
    session.report(
        "built",
        wanted=wanted,
        built=sum(not k["taken"] and k["failed"] is None for k in built),
        taken_from_the_cache=sum(k["taken"] for k in built),
        failed=[f"{k['kernel']} of {k['case']}: {k['failed']}" for k in built if k["failed"] is not None],
        cores=os.cpu_count(),
        seconds=seconds,
        compiler_seconds=[k["seconds"] for k in built],
    )
    if session.dry:
        session.skip("taken by a launch", "Triton is interpreted here")
    else:
        session.report("taken by a launch", taken=_taken(session.device))


def _ahead(session: Session, cache: Path) -> None:
    """Puts what was built ahead into the cache, if there is anything; "built" then counts what Triton took of it."""
    given = os.environ.get(AHEAD)
    if given is None:
        session.skip("built ahead", "no --triton-cache was given")
    elif cache.exists() and any(cache.iterdir()):
        session.skip("built ahead", f"{cache} holds kernels of an earlier run: whose are used could not be told")
    else:
        session.report("built ahead", kernels=take(Path(given), cache), folder=given)


def _build(session: Session, cache: Path) -> tuple[list[dict[str, Any]], int]:
    """What was built, and how many were wanted; in another process, since this one may be interpreting Triton."""
    words = [str(cache), "--arch", str(_arch(session.device)), "--seconds", str(BEGUN)]
    words += ["--only", SMALL] if session.dry else []
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kinema.bench.gpu_session.kernel_cache", *words]
    try:
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=LIMIT, check=True).stdout
    except subprocess.TimeoutExpired as error:  # what is built is built
        said = (error.output or b"").rpartition(b"\n")[0]
    wanted, *built = map(json.loads, said.splitlines())
    return built, wanted["wanted"]


def _arch(device: torch.device) -> int:
    if device.type == "cpu":
        return STAND_IN
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _taken(device: torch.device) -> bool:
    """Whether a launch on this GPU finds the kernel in the cache."""
    import triton

    from kinema.ops.unpatchify import triton as functions

    (case,) = (case for case in all_cases() if (case.op, case.name) == LAUNCHED)
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    case.prepare(functions, Target(device, PRECISIONS["cuda"]["bf16"]), Inputs(device))()
    return bool(hits) and all(hits)


QUESTION = Question(
    decides="whether kernels built ahead, without a GPU, are taken; and spares the others their compilations",
    serves="the first frame, and every question that launches Triton",
    value=10,
    seconds=50,
    needs=("triton",),
    ask=ask,
    first=True,
)
