"""Damaged files and odd requests by the thousand: `make fuzz`.

A case may run or be refused with a KinemaError. Anything else is a fault: another exception, a crash, ten seconds of
work, more than 400 MiB above the idle process, frames that are not finite, a message that is endless or holds control
characters. Cases depend on (seed, group, number) alone; results are appended to a file, so that a run that was stopped
goes on, and `--only GROUP:NUMBER` shows one again.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

CPU_SECONDS = 10.0
WALL_SECONDS = 60.0  # a machine may be busy; what waits for ever uses no CPU time
CASES_A_WORKER = 250  # then a new one: what a case leaves behind must not hide or become another's fault
TICK = os.sysconf("SC_CLK_TCK")
BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"

Result = dict[str, Any]


class Worker:
    """A process that runs cases, and the limits that it cannot set for itself."""

    def __init__(self, base: Path, seed: int, cpu: float = CPU_SECONDS, wall: float = WALL_SECONDS) -> None:
        self.cpu, self.wall = cpu, wall
        command = [sys.executable, str(HERE / "fuzz_worker.py"), str(base), str(seed)]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, start_new_session=True
        )
        self.done = 0
        self._waiting = b""
        if self._answer(4 * WALL_SECONDS, None) is None:
            raise RuntimeError(f"a worker did not start: {self._said()}")

    def run(self, group: str, number: int) -> Result:
        assert self.process.stdin is not None
        used = self._cpu_seconds()
        self.process.stdin.write(f"{group} {number}\n".encode())
        self.process.stdin.flush()
        self.done += 1
        answer = self._answer(self.wall, used + self.cpu)
        if answer is not None:
            return answer
        code = self.process.poll()
        if code is None:
            said = self._said()
            self.close()
            return {"outcome": "hung", "fault": "did not end", "said": said}
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return {"outcome": "crashed", "fault": f"the process died of {name}", "said": self._said()}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()

    def _answer(self, wall: float, cpu: float | None) -> Result | None:
        assert self.process.stdout is not None
        end = time.monotonic() + wall
        while b"\n" not in self._waiting:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.5)
            if ready:
                read = os.read(self.process.stdout.fileno(), 1 << 16)
                if not read:
                    self.process.wait()
                    return None
                self._waiting += read
            elif time.monotonic() > end or (cpu is not None and self._cpu_seconds() > cpu):
                return None
        line, self._waiting = self._waiting.split(b"\n", 1)
        found: Result = json.loads(line)
        return found

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / TICK

    def _said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-1500:].decode(errors="replace")


def run(cases: Iterable[tuple[str, int]], base: Path, seed: int) -> Iterator[tuple[str, int, Result]]:
    """Each case and how it ended, one after the other, in a worker that is used again."""
    worker: Worker | None = None
    try:
        for group, number in cases:
            if worker is None or not worker.alive or worker.done >= CASES_A_WORKER:
                if worker is not None:
                    worker.close()
                worker = Worker(base, seed)
            yield group, number, worker.run(group, number)
    finally:
        if worker is not None:
            worker.close()


def table(results: dict[tuple[str, int], Result]) -> str:
    """A Markdown table: per group how many ran, were refused, and how the others ended."""
    groups = list(dict.fromkeys(group for group, _ in results))
    lines = ["| | cases | ran | refused | faults | longest | most memory |", "|---|---:|---:|---:|---:|---:|---:|"]
    for group in groups:
        found = [result for (name, _), result in results.items() if name == group]
        ran, refused = (sum(result["outcome"] == outcome for result in found) for outcome in ("ran", "refused"))
        faults = sum(result["fault"] is not None for result in found)
        longest = max(result.get("seconds", CPU_SECONDS) for result in found)
        most = max(result.get("mib", 0) for result in found)
        lines.append(f"| {group} | {len(found)} | {ran} | {refused} | {faults} | {longest:.1f} s | {most} MiB |")
    return "\n".join(lines)


def main() -> int:
    from fuzz_base import Base
    from fuzz_groups import GROUPS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("runs/fuzz"), help="folder of results (%(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of each group's cases (1: all)")
    parser.add_argument("--group", choices=list(GROUPS), action="append", help="only this group")
    parser.add_argument("--only", metavar="GROUP:NUMBER", help="run one case again and say all about it")
    parser.add_argument("--docs", type=Path, help="write the table between this page's marks")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"] = scratch
        base = Base.make(Path(scratch) / "base").folder
        if arguments.only is not None:
            group, _, number = arguments.only.partition(":")
            for *_, result in run([(group, int(number))], base, arguments.seed):
                print(json.dumps(result, indent=1))
                print(result["said"])
            return 0
        path = arguments.state / f"seed-{arguments.seed}.jsonl"
        results: dict[tuple[str, int], Result] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                read = json.loads(line)
                results[read.pop("group"), read.pop("number")] = read
        chosen = {name: int(count * arguments.share) for name, (_, count) in GROUPS.items()}
        wanted = [(g, n) for g, count in chosen.items() if g in (arguments.group or chosen) for n in range(count)]
        missing = [case for case in wanted if case not in results]
        print(f"{len(wanted)} cases of seed {arguments.seed}, {len(missing)} to run; results in {path}", flush=True)
        with path.open("a") as file:
            for group, number, result in run(missing, base, arguments.seed):
                results[group, number] = result
                print(json.dumps({"group": group, "number": number, **result}), file=file, flush=True)
                if result["fault"] is not None:
                    print(f"{group}:{number}: {result['fault']}", flush=True)
    shown = {case: results[case] for case in wanted}
    print(table(shown))
    if arguments.docs is not None:
        text = arguments.docs.read_text()
        before, _, rest = text.partition(BEGIN)
        command = f"`make fuzz` (seed {arguments.seed}):"
        arguments.docs.write_text(f"{before}{BEGIN}\n{command}\n\n{table(shown)}\n{END}{rest.partition(END)[2]}")
    return int(any(result["fault"] is not None for result in shown.values()))


if __name__ == "__main__":
    sys.exit(main())
