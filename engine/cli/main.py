"""The command line: generate, inspect, doctor, tune, bench, train-sample."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import kinema
from kinema import env
from kinema.cli.failures import described
from kinema.cli.output import complain, drop_output, flush_output, open_standard_streams, show_anything
from kinema.cli.parser import UsageError, VerbParser, Verbs
from kinema.errors import KinemaError, KinemaWarning

VERBS: Verbs = {
    "generate": ("kinema.cli.generate", "make a video (or image) from a prompt"),
    "inspect": ("kinema.cli.inspect", "a model's parts, parameters and predicted peak memory"),
    "doctor": ("kinema.cli.doctor", "this machine, its libraries, and what runs each op and why"),
    "tune": ("kinema.cli.tune", "find this GPU's fastest tiles for the kernels, once, for all later runs"),
    "bench": ("kinema.bench.command", "measure speed and distance from the reference"),
    "train-sample": ("kinema.sample.command", "train the small model that ships with kinema"),
}

EXIT_CODES = """\
Exit codes: 0 done; 1 it could not be done, one line on stderr says why; 2 the command line is wrong; 130 ctrl-C;
143 terminated. KINEMA_TRACEBACK=1 shows where in the program an error comes from.
"""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks the process to end. It is raised where it arrives, so that whatever is open is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__((signal.strsignal(number) or f"signal {number}").lower())
        self.number = number


def console() -> NoReturn:
    """`main` in a process of its own, which is gone as soon as everything is written.

    Tearing down an interpreter with torch in it takes a third of a second, and frees what the system frees anyway.
    """
    open_standard_streams()
    code = main()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.exit(code)  # a host's thread, which is still at work
    atexit._run_exitfuncs()  # ends worker processes, for one
    flush_output()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code, 128 + n if signal n ended it."""
    show_anything()
    try:
        with _stop_signals_raise(), _warnings_are_lines():
            code = _run(sys.argv[1:] if argv is None else argv)
            flush_output()
            return code
    except UsageError as error:
        return _fail(2, str(error))
    except KinemaError as error:
        if env.traceback():
            raise
        return _fail(1, f"kinema: error: {error}")
    except KeyboardInterrupt:
        return _fail(128 + signal.SIGINT, "kinema: interrupted")
    except Stopped as stopped:
        return _fail(128 + stopped.number, f"kinema: {stopped}")
    except BrokenPipeError:
        # the reader of our output has what it wanted (kinema ... | head)
        drop_output()
        return 128 + signal.SIGPIPE
    except Exception as error:
        outside = described(error)
        if outside is None or env.traceback():
            raise
        return _fail(1, f"kinema: error: {outside}")


def _run(arguments: Sequence[str]) -> int:
    parser = VerbParser(
        prog="kinema",
        description="Text to video on this machine.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kinema {kinema.__version__}")
    parser.add_verbs(VERBS)
    try:
        parsed = parser.parse_args(arguments, argparse.Namespace(words=list(arguments)))
    except SystemExit:  # argparse has printed the help or the version
        return 0
    if "run" not in parsed:
        parser.error(f"no verb given: wanted {', '.join(VERBS)}")
    code: int = parsed.run(parsed)
    return code


def _fail(code: int, message: str) -> int:
    complain(message)
    return code


@contextmanager
def _stop_signals_raise() -> Iterator[None]:
    """Have SIGTERM and a closed terminal raise `Stopped`, as ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        # what is ignored (nohup) or already handled (a host program) stays as it is
        changed = [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in changed:
            signal.signal(number, stop)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _warnings_are_lines() -> Iterator[None]:
    """Show kinema's own warnings as its errors are shown, without the place in the program that they come from.

    What pillow warns of and logs on the way to an error is silenced: the error says it in one line.
    """
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, KinemaWarning):
            complain(f"kinema: warning: {' '.join(str(message).split())}")
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").addHandler(logging.NullHandler())
        yield


if __name__ == "__main__":
    console()
