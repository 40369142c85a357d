"""kinema bench: one verb per benchmark."""

from __future__ import annotations

import argparse

from kinema.bench.registry import VERBS
from kinema.cli.output import emit
from kinema.cli.parser import VerbParser


def add_arguments(parser: VerbParser) -> None:
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_verbs(VERBS)


def run(arguments: argparse.Namespace) -> int:
    """Without a verb: the list."""
    emit("\n".join(f"{verb:16} {summary}" for verb, (_, summary) in VERBS.items()))
    return 0
