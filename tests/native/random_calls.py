"""Random calls of every native op, and of the C interface below it: make sanitize runs them under ASan and UBSan.

    python tests/native/random_calls.py --calls 2000 --tables avx2 --ops linear

Half of the calls are as the contract allows them, and their results are compared with the reference's; the others have
something spoiled (misfits.py), and must be refused or computed. Each table and op runs in a process of its own, which a
report ends: then the next one goes on behind that call. Every call is made from (seed, op, number) alone.
"""

import argparse
import collections
import contextlib
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # a script, or started by a test as one
import calls
import misfits

from kinema.ops.common import native

KINDS = ("computed", "refused", "lax", "wrong", "report")


def one(op, seed, number, spoil):
    """(what became of a call, a word about it). Spoiled: "op" and "interface", what of a misfit is spoiled."""
    dice = calls.Dice(f"{seed}/{op}/{number}")
    call, told = calls.OPS[op](dice), []
    torch.set_num_threads(dice.choice((1, 1, 2, 3)))
    kind = ("plain", "plain", "op", "interface")[number % 4]
    if kind == "plain" or kind not in spoil:
        try:
            difference = call.differs()
        except Exception as error:
            difference = f"{type(error).__name__}: {error}"
        return ("wrong", difference) if difference else ("computed", "")
    if kind == "op":
        call = misfits.spoiled(call, dice)
    try:
        with misfits.meddling(dice, told) if kind == "interface" else contextlib.nullcontext():
            call.make()
    except Exception as error:
        return "refused", f"{type(error).__name__}: {error}"
    if kind == "interface":
        return "computed", told[-1] if told else ""
    try:
        call.make("reference")
    except Exception as error:
        return "lax", f"the reference has {type(error).__name__}: {error}"
    return "computed", ""


def exact_memory():
    """Scratch and packed weights as long as they must be: their ends are watched, and nothing in them is zero."""
    held = []

    def workspace(count):
        held[:] = [misfits.aligned(count)]
        return held[0].data_ptr()

    for op in calls.OPS:
        module = importlib.import_module(f"kinema.ops.{op}.cpu")
        for name, made in (("workspace", workspace), ("aligned_bytes", misfits.aligned)):
            if hasattr(module, name):
                setattr(module, name, made)
    native.aligned_bytes = misfits.aligned


def work(op, table, options, first, told):
    """Calls from `first` on; `told` is written what became of each before the next begins."""
    exact_memory()
    with native.forced(table):
        for number in range(first, options.calls):
            os.write(told, f"{number}\n".encode())
            os.write(told, (json.dumps(one(op, options.seed, number, options.spoil)) + "\n").encode())


def run(op, table, options):
    """Counts of what became of the calls, and the words of those that went wrong."""
    counts, words, first = collections.Counter(), [], 0
    while first < options.calls:
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as errors:
            child = os.fork()
            if child == 0:
                os.close(reading)
                os.dup2(errors.fileno(), 2)
                try:
                    work(op, table, options, first, writing)
                except BaseException as error:
                    os.write(2, f"{type(error).__name__}: {error}".encode())
                    os._exit(1)
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as lines:
                number = first - 1
                for line in lines:
                    if line.startswith("["):
                        kind, word = json.loads(line)
                        counts[kind] += 1
                        if kind in ("wrong", "lax"):
                            words.append((kind, number, word))
                    else:
                        number = int(line)
            first = number + 1
            if status := os.waitpid(child, 0)[1]:
                errors.seek(0)
                counts["report"] += 1
                words.append(("report", number, summary(errors.read().decode(errors="replace"), status)))
    return counts, words


def summary(text, status):
    """Of a sanitizer's report: the mistake, and the first of our functions on the way to it."""
    lines = text.splitlines()
    mistake = [line for line in lines if "ERROR: " in line or "runtime error: " in line]
    where = [line.split(" in ", 1)[1] for line in lines if " in kinema" in line]
    return " ".join((mistake or lines[-1:] or [f"status {status}"])[:1] + where[:1])


def built_tables():
    name, found = native.cpu().library.kinema_cpu_isa_name, []
    while (table := name(len(found))) is not None:
        found.append(table.decode())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="of each op, by each table")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--tables", nargs="*", default=native.instruction_sets())
    parser.add_argument("--ops", nargs="*", choices=list(calls.OPS), default=list(calls.OPS))
    parser.add_argument("--spoil", nargs="*", choices=("op", "interface"), default=["op", "interface"])
    parser.add_argument("--number", type=int, help="this call alone, here: what a report was about")
    options = parser.parse_args()
    if options.number is not None:
        exact_memory()
        with native.forced(options.tables[0]):
            print(*one(options.ops[0], options.seed, options.number, options.spoil))
        return 0
    print(f"{'table':<12} {'op':<15}" + "".join(f"{kind:>10}" for kind in ("calls", *KINDS)))
    bad = 0
    for table in options.tables:
        for op in options.ops:
            counts, words = run(op, table, options)
            row = [sum(counts.values()), *(counts[kind] for kind in KINDS)]
            print(f"{table:<12} {op:<15}" + "".join(f"{number:>10}" for number in row), flush=True)
            for kind, number, word in words:
                if kind != "lax":
                    print(f"    {kind}: --ops {op} --tables {table} --number {number}: {word}", flush=True)
            bad += counts["report"] + counts["wrong"]
    for table in built_tables():
        if table not in options.tables:
            print(f"{table:<12} not run{'' if table in native.instruction_sets() else ': this processor lacks it'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
