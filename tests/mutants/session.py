"""What a mutation run is, whatever is mutated: jobs, each tested in a forked process, and a verdict on survivors."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutate import Mutant

LEAST_KILLED = 0.95
TIMEOUT = 240.0  # seconds of the processor, so that a busy machine kills no mutant; one may loop for ever


@dataclass(frozen=True)
class Job:
    """group: an op or a folder, `file` one of its files."""

    group: str
    file: Path
    mutant: Mutant
    by_hand: bool = False


class Spread:
    """Runs the first case of every test, then the second of each and so on: a mistake shows in many cases of a test."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        seen: Counter[str] = Counter()
        turns = {}
        for item in items:
            turns[item] = seen[item.originalname]
            seen[item.originalname] += 1
        items.sort(key=turns.__getitem__)


def by_hand(group: str, file: Path, mistakes: tuple[tuple[str, str, str], ...]) -> list[Job]:
    """Hand-written mutants of a file: (name, text in the file, what it becomes)."""
    source = file.read_text(encoding="utf-8")
    made = []
    for name, old, new in mistakes:
        if source.count(old) != 1:
            raise SystemExit(f"{group}/{file.name}, {name!r}: its text is there {source.count(old)} times, wanted once")
        made.append(Job(group, file, Mutant("by hand", name, source.replace(old, new)), by_hand=True))
    return made


def survives(test: Callable[[], int]) -> bool:
    """Whether `test`, a pytest run, is green in a silent process of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, TIMEOUT)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = test()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def run(work: list[Job], survives_job: Callable[[Job], bool | None], processes: int) -> tuple[list[Job], list[Job]]:
    """(the jobs that were tested, the survivors). `survives_job` answers None of what does not build: no mutant."""
    alive: dict[int, tuple[int, Job, float]] = {}
    verdicts = {0: "SURVIVED", 1: "killed", 2: "no build"}
    answers = {True: 0, False: 1, None: 2}
    tested, survivors, waiting = [], [], list(enumerate(work))
    while waiting or alive:
        while waiting and len(alive) < processes:
            number, job = waiting.pop(0)
            child = os.fork()
            if child == 0:
                os._exit(answers[survives_job(job)])
            alive[child] = (number, job, time.monotonic())
        child, status = os.wait()
        number, job, started = alive.pop(child)
        answer = os.waitstatus_to_exitcode(status)
        if answer != answers[None]:
            tested.append(job)
        if answer == answers[True]:
            survivors.append(job)
        seconds = time.monotonic() - started
        where = f"{job.group}/{job.file.name} {job.mutant.what}"
        print(f"[{number + 1}/{len(work)}] {verdicts.get(answer, 'killed'):8} {seconds:5.1f} s  {where}", flush=True)
    return tested, survivors


def verdict(work: list[Job], survivors: list[Job], reason: Callable[[Job], str | None]) -> int:
    """Prints what was killed and why the others were not; 0 if every survivor is explained and few are left."""
    unexplained = [j for j in survivors if reason(j) is None]
    automatic = [j for j in work if not j.by_hand]
    lost = [j for j in survivors if j.by_hand]
    killed = len(automatic) - len([j for j in survivors if not j.by_hand])
    if automatic:
        print(f"{killed} of {len(automatic)} automatic mutants killed, {100 * killed / len(automatic):.1f} %")
    print(f"{len(work) - len(automatic) - len(lost)} of {len(work) - len(automatic)} hand-written mutants killed")
    for job in survivors:
        print(f"survivor: {job.group}/{job.file.name} {job.mutant.what}: {reason(job) or 'NOT EXPLAINED'}")
    good = not unexplained and not lost and (not automatic or killed >= LEAST_KILLED * len(automatic))
    return 0 if good else 1
