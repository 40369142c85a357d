"""Runs work in a forked process of its own: a hang or crash affects nothing else."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Line = dict[str, Any]
Send = Callable[[Line], None]
Status = Literal["done", "failed", "limit", "crash", "skipped"]

POLL = 0.02  # seconds
PATIENCE = 10.0  # seconds for a killed process to exit: a driver may have to end a hung kernel first
_ENDED = "ended"  # the key of the line that says how work ended


@dataclass(frozen=True)
class Ended:
    """How the work ended; "skipped" never began. reason: None for "done"."""

    status: Status
    reason: str | None
    seconds: float


def run_apart(work: Callable[[Send], None], limit: float, keep: Callable[[Line], None], log: Path) -> Ended:
    """work(send) in a forked process; each line that it sends is given to `keep` at once.

    limit: seconds until it is killed with all the processes that it started. log: the file of its output. This process
    must not have touched CUDA, nor have started threads that the work would wait for.
    """
    started = time.perf_counter()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _child(work, send, log)
    os.close(send)
    os.set_blocking(receive, False)
    lines = _Lines(keep)
    status: int | None = None
    try:
        while status is None and time.perf_counter() - started < limit:
            if not (select.select([receive], [], [], POLL)[0] and lines.read(receive)):
                time.sleep(POLL)
            status = _waited(child)
        lines.read(receive)
    finally:
        _kill(child, alone=status is None)
        os.close(receive)
    seconds = time.perf_counter() - started
    if lines.ended is not None:
        return Ended(*lines.ended, seconds)
    if status is None:
        gone = _gone(child)
        return Ended("limit", f"stopped after {limit:g} s" + ("" if gone else ", and has not ended since"), seconds)
    return Ended("crash", _death(status), seconds)


def _child(work: Callable[[Send], None], pipe: int, log: Path) -> None:
    """Never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        with open(log, "ab") as said, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        faulthandler.enable(file=2)  # where it was when it crashed

        def send(line: Line) -> None:
            _write(pipe, json.dumps(line, allow_nan=False).encode() + b"\n")

        try:
            work(send)
            send({_ENDED: ("done", None)})
        except BaseException as error:
            traceback.print_exc()
            send({_ENDED: ("failed", _said(error))})
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _said(error: BaseException) -> str:
    """One line: the kind of error, its text and where it came from."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text} ({Path(at.filename).name}:{at.lineno})"


def _write(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data) :]


class _Lines:
    """Bytes of a pipe as lines. A line that a crash cut short is dropped."""

    def __init__(self, keep: Callable[[Line], None]) -> None:
        self._keep = keep
        self._rest = b""
        self.ended: tuple[Status, str | None] | None = None

    def read(self, pipe: int) -> bool:
        """Read what there is; False at the end of the pipe."""
        while True:
            try:
                data = os.read(pipe, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in map(json.loads, whole):
                if _ENDED in line:
                    self.ended = tuple(line[_ENDED])
                else:
                    self._keep(line)


def _waited(child: int) -> int | None:
    """The status of a process that has ended; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return status if done else None


def _gone(child: int) -> bool:
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        if _waited(child) is not None:
            return True
        time.sleep(POLL)
    return False


def _kill(child: int, *, alone: bool) -> None:
    """Kill the work's process group. alone: also the work itself, which may not have made a group yet."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if alone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the process ended with {code} and said nothing"
    return f"killed by {signal.Signals(-code).name} ({(signal.strsignal(-code) or '').lower()})"
