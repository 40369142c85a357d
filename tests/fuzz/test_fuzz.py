"""A part of `make fuzz` on every run, and proof that it notices what it is there for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_base import Base
from fuzz_groups import GROUPS
from fuzz_run import Worker, run, table


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base.make(tmp_path_factory.mktemp("fuzz") / "base").folder


@pytest.mark.parametrize("count", [200, pytest.param(600, marks=pytest.mark.full)])
def test_damaged_files_and_odd_requests_run_or_are_refused(base, count):
    whole = sum(share for _, share in GROUPS.values())
    cases = [(name, number) for name, (_, share) in GROUPS.items() for number in range(count * share // whole)]
    results = {(group, number): result for group, number, result in run(cases, base, seed=1)}
    faults = {f"{group}:{number}": result for (group, number), result in results.items() if result["fault"]}
    assert not faults, f"{table(results)}\n{faults}\nto see one: python tests/fuzz/fuzz_run.py --seed 1 --only …"
    assert {result["outcome"] for result in results.values()} == {"ran", "refused"}


PLANTED = {
    "raise": "ZeroDivisionError",
    "message": "control characters",
    "nan": "NaN or infinite frames",
    "memory": "MiB above the idle process",
    "crash": "the process died of SIGSEGV",
    "hang": "did not end",
    "wait": "did not end",
}


def test_what_is_planted_is_found_and_a_case_is_the_same_again(base):
    cases = [(name, 3) for name in GROUPS]
    ended = []
    worker = Worker(base, 7)
    try:
        for _ in range(2):
            ended.append([worker.run(*case)["outcome"] for case in cases])
        for planted, fault in PLANTED.items():
            if not worker.alive:
                worker = Worker(base, 7)
            worker.cpu, worker.wall = (60.0, 3.0) if planted == "wait" else (2.0, 60.0)
            result = worker.run(planted, 0)
            assert fault in result["fault"], result
            assert worker.alive == (planted not in ("crash", "hang", "wait")), "others go on in the same process"
    finally:
        worker.close()
    assert ended[0] == ended[1]
