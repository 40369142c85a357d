"""Which questions exist, and which of them are asked, in which order."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import shutil
from collections.abc import Collection, Mapping, Sequence

from kinema.bench.gpu_session import questions
from kinema.bench.gpu_session.question import Question
from kinema.errors import RequestError

Known = dict[str, Question | str]  # by name; a string says why a file has none


def known() -> Known:
    """Every file of questions/. One that cannot be imported becomes the reason why, and stops no other."""
    found: Known = {}
    for module in pkgutil.iter_modules(questions.__path__):
        if module.name.startswith("_"):
            continue
        try:
            question = importlib.import_module(f"{questions.__name__}.{module.name}").QUESTION
        except Exception as error:  # whatever a library raises that does not load here
            found[module.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        found[module.name] = question
    return found


def ordered(known: Mapping[str, Question | str]) -> list[str]:
    """First what all others build on, then by value per second, last what cannot be asked."""

    def rank(name: str) -> tuple[bool, bool, float, str]:
        question = known[name]
        if isinstance(question, str):
            return True, True, 0.0, name
        return False, not question.first, -question.value / question.seconds, name

    return sorted(known, key=rank)


def chosen(
    known: Mapping[str, Question | str], only: Sequence[str], missing: bool, answered: Collection[str]
) -> list[str]:
    """Names, in order. only: these. missing: not what is answered. Raises RequestError for an unknown name."""
    unknown = [name for name in only if name not in known]
    if unknown:
        raise RequestError(f"no question {', '.join(unknown)}: there are {', '.join(ordered(known))}")
    names = [name for name in ordered(known) if not only or name in only]
    if not missing:
        return names
    return [name for name in names if name not in answered or (not only and _first(known[name]))]


def _first(question: Question | str) -> bool:
    return isinstance(question, Question) and question.first


def lacks(needs: Sequence[str]) -> str | None:
    """Which modules and programs are missing, as a reason; None if none is."""
    absent = [name for name in needs if shutil.which(name) is None and not _module(name)]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
