"""A few of the random calls that make sanitize makes thousands of, without its sanitizers: are their results right?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kinema.ops.common import native

SCRIPT = Path(__file__).with_name("random_calls.py")


@pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")
def test_random_calls_are_computed_or_refused():
    """What is spoiled here the interface can see, so nothing is read that it should not be."""
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("make sanitize runs them all")
    command = [sys.executable, SCRIPT, "--calls", "40", "--spoil", "interface"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.split()[2:3] == ["40"]]
    assert len(rows) == 9 * len(native.instruction_sets())
