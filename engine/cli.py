"""The command line: generate, inspect, doctor, bench, train-sample."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import kinema
from kinema import env
from kinema.errors import KinemaError

# verb → (module, one line of help). The module has `add_arguments(parser)` and `run(arguments) -> int`, and is
# imported when its verb is used.
VERBS = {
    "generate": ("kinema.commands.generate", "make a video (or image) from a prompt"),
    "inspect": ("kinema.commands.inspect", "a model's parts, parameters and predicted peak memory"),
    "doctor": ("kinema.commands.doctor", "this machine, its libraries, and what runs each op and why"),
    "bench": ("kinema.bench.command", "measure speed and distance from the reference"),
    "train-sample": ("kinema.sample.command", "train the small model that ships with kinema"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for an error of ours, 2 for bad usage, 130 after ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="kinema", description="Text to video on this machine.")
    parser.add_argument("--version", action="version", version=f"kinema {kinema.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    modules = {}
    for verb, (module, summary) in VERBS.items():
        subparser = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if verb == wanted:
            modules[verb] = import_module(module)
            modules[verb].add_arguments(subparser)
    try:
        parsed = parser.parse_args(arguments)
        code: int = modules[parsed.verb].run(parsed)
        return code
    except KinemaError as error:
        if env.traceback():
            raise
        print(f"kinema: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kinema: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output went away (kinema ... | head)
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
