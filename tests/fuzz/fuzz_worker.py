"""Runs cases that it is given on standard input, "group number" a line, and answers with a line of JSON each.

A process of its own, used for many cases: what ends it is the finding. Started by fuzz_run.py.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_base import Base
from fuzz_groups import GROUPS, PLANTED, generate

import kinema.pipeline
from kinema.buffers.heap import return_freed_bytes
from kinema.errors import KinemaError
from kinema.media.inputs import load_video
from kinema.memory.predict import PROCESS_BYTES

MEMORY = 400 << 20
LONGEST_MESSAGE = 4100  # kinema.errors.MAX_MESSAGE, and what says how much was cut


_predicted: list[int] = []  # bytes above the idle process, of the clips that a case asks for


def note_predictions() -> None:
    """Have every request that is checked leave what it is predicted to need."""
    check = kinema.pipeline.check_fits

    def noting(*given: Any, **options: Any) -> None:
        _predicted.append(check(*given, **options).peak - PROCESS_BYTES)

    kinema.pipeline.check_fits = noting


def resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def reset_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # then the peak is the process', and a case is charged for those before it


def judge(group: str, number: int, seed: int, base: Base, idle: int) -> dict[str, Any]:
    """Run one case. fault: None, or what is wrong with how it ended."""
    random = Random(f"{seed}/{group}/{number}")
    scratch = Path(tempfile.mkdtemp(prefix="case-"))
    gc.collect()
    return_freed_bytes()
    reset_peak()
    _predicted.clear()
    started, fault, said = time.process_time(), None, ""
    try:
        output = GROUPS[group][0](random, base, scratch) if group in GROUPS else PLANTED[group]()
        outcome = "ran"
        fault = _not_finite(output)
        output = None
    except KinemaError as error:
        outcome, said = "refused", str(error)
        if len(said) > LONGEST_MESSAGE:
            fault = f"a message of {len(said)} characters"
        elif any(ord(c) < 32 and c not in "\n\t" for c in said):
            fault = "control characters in a message"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        outcome, fault = "raised", f"{type(error).__name__}: {error}"[:300]
        said = traceback.format_exc()[-1500:]
    seconds, peak = time.process_time() - started, resident("VmHWM") - idle
    shutil.rmtree(scratch, ignore_errors=True)
    asked = max(_predicted, default=0)  # a large clip that fits may take what it needs
    if fault is None and peak > MEMORY + asked:
        fault = f"{peak >> 20} MiB above the idle process, {asked >> 20} predicted"
    return {"outcome": outcome, "fault": fault, "said": said, "seconds": round(seconds, 3), "mib": peak >> 20}


def _not_finite(output: Any) -> str | None:
    if output is None:
        return None
    frames = output.frames
    if isinstance(frames, torch.Tensor):
        finite = bool(frames.isfinite().all())
    elif isinstance(frames, np.ndarray):
        finite = bool(np.isfinite(frames).all())
    else:
        finite = True
    return None if finite else "NaN or infinite frames without an error"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print may have standard output
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    note_predictions()
    base, seed = Base(Path(sys.argv[1])), int(sys.argv[2])
    generate(base.t2v)  # what is imported and allocated once
    generate(base.i2v, image=str(base.media / "picture.png"))
    load_video(base.media / "video.mp4")
    gc.collect()
    return_freed_bytes()
    idle = resident("VmRSS")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        group, number = line.split()
        print(json.dumps(judge(group, int(number), seed, base, idle)), file=answers, flush=True)


if __name__ == "__main__":
    main()
