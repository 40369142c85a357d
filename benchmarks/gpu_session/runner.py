"""Asks questions one after the other, each in a process of its own, and writes what comes back at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinema.bench.gpu_session.choice import Known, lacks
from kinema.bench.gpu_session.question import Question
from kinema.bench.gpu_session.results import Line, append
from kinema.bench.gpu_session.session import DrySession, GpuSession
from kinema.bench.gpu_session.worker import Ended, Send, run_apart

DRY_PATIENCE = 3  # times a question's limit: a rehearsal shares its processor with other work


@dataclass(frozen=True)
class Runner:
    """path: the file of results; files that questions write are in a folder beside it. started: by perf_counter.

    budget: seconds from then until all must have ended. tell: is called with progress messages.
    """

    path: Path
    dry: bool
    budget: float
    started: float
    tell: Callable[[str], None]

    @property
    def folder(self) -> Path:
        return self.path.with_suffix("")

    def ask(self, questions: Known, names: Sequence[str], head: Line) -> list[Line]:
        """The lines that were written. A question that would not end within the budget is left out."""
        lines: list[Line] = []

        def keep(line: Line) -> None:
            append(self.path, line)
            lines.append(line)

        keep(head)
        for name in names:
            question = questions[name]
            if isinstance(question, str):
                ended: Ended | None = Ended("failed", question, 0.0)
            elif (reason := lacks(question.needs)) is not None:
                ended = Ended("skipped", reason, 0.0)
            else:
                ended = self._one(name, question, keep)
            if ended is not None:
                decides = question.decides if isinstance(question, Question) else ""
                keep({"kind": "end", "question": name, "decides": decides, **vars(ended)})
                why = f": {ended.reason}" if ended.reason else ""
                self.tell(f"{name}: {ended.status} in {ended.seconds:.1f} s{why}")
        return lines

    def _one(self, name: str, question: Question, keep: Send) -> Ended | None:
        """None if there is no time for it."""
        left = self.budget - (time.perf_counter() - self.started)
        if question.seconds > left:
            return None
        self.tell(f"{name}: {question.decides}")
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)

        def work(send: Send) -> None:
            question.ask((DrySession if self.dry else GpuSession)(name, folder, send, self.started))

        limit = min(question.limit * (DRY_PATIENCE if self.dry else 1), left)
        return run_apart(work, limit, keep, folder / "said.log")
