"""Argument parsing: verbs whose modules are imported when they are used, and errors of one line with a suggestion."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from kinema.cli.output import emit

Verbs = Mapping[str, tuple[str, str]]


class UsageError(Exception):
    """The command line cannot be understood; the message is one line and says where help is."""


class VerbParser(argparse.ArgumentParser):
    """An ArgumentParser of one verb, or of a choice of verbs.

    module: has `add_arguments(parser)` and `run(arguments) -> int`; imported when this parser first parses, so that
    a command pays for its own verb only. Options must be spelled out: an abbreviation would change its meaning
    when an option is added.
    """

    def __init__(self, *, module: str | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._module = module
        self._verbs: tuple[str, ...] = ()

    def add_verbs(self, verbs: Verbs) -> None:
        """Let the user choose one of `verbs`, {verb: (module, one line of help)}."""
        subparsers = self.add_subparsers(metavar="VERB", title="verbs")
        for verb, (module, summary) in verbs.items():
            description = f"{summary[0].upper()}{summary[1:]}{'' if summary.endswith('?') else '.'}"
            subparsers.add_parser(verb, help=summary, description=description, module=module)
        self._verbs = tuple(verbs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but anything unknown is an error."""
        if self._module is not None:
            module, self._module = import_module(self._module), None
            module.add_arguments(self)
            self.set_defaults(run=module.run)
        words = list(args or ())
        if self._verbs:
            self._check_verb(words)
        parsed, rest = super().parse_known_args(words, namespace)
        unknown = [word for word in rest if word != "--"]
        if unknown:
            self.error(self._unknown(unknown))
        return parsed, []

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version; argparse would ignore that they cannot be written."""
        emit(message.removesuffix("\n"))

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: error: {message}; see {self.prog} --help")

    def _check_verb(self, words: Sequence[str]) -> None:
        # no option of a choice of verbs takes a value, so the first plain word is the verb
        word = next((word for word in words if not word.startswith("-")), None)
        if word is not None and word not in self._verbs:
            self.error(f"unknown verb {word!r}{_meant(word, self._verbs)}: wanted {', '.join(self._verbs)}")

    def _unknown(self, words: Sequence[str]) -> str:
        options = [word for word in words if word.startswith("-")]
        if not options:
            return f"unexpected argument {words[0]!r}: put text of several words in quotes"
        option = options[0].partition("=")[0]
        return f"unknown option {option}{_meant(option, self._option_string_actions)}"


def _meant(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def text(word: str) -> str:
    """An argument that a model reads: valid Unicode. Bytes that are not UTF-8 arrive as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not valid UTF-8") from error
    return word
