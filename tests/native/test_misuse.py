"""Nothing that the C interface is given kills its caller: it computes, does nothing, or says what was wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kinema.ops.common import native

pytestmark = pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")

SCRIPT = Path(__file__).with_name("misuse.py")
spec = importlib.util.spec_from_file_location("misuse", SCRIPT)
misuse = importlib.util.module_from_spec(spec)
spec.loader.exec_module(misuse)

CASES = {label: misuse.STATUSES[status] for label, _, _, status in misuse.cases()}


@pytest.fixture(scope="module")
def outcomes():
    """What came of each misuse; those behind one that killed the process are missing."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    found["end"] = f"the process ended with {done.returncode} behind {list(found)[-1:]}: {done.stderr[-2000:]}"
    return found


def test_cases_have_names_of_their_own():
    assert len(CASES) == len(list(misuse.cases()))


@pytest.mark.parametrize("label", CASES)
def test_a_misuse_has_its_status(label, outcomes):
    assert label in outcomes, outcomes["end"]
    status, scratch = outcomes[label]
    assert status == CASES[label]
    # who asks for scratch is told the same, or, where only memory is at fault, how much
    assert scratch == -status or (scratch >= 0 and "no memory" not in label)


@pytest.mark.parametrize(("name", "given", "status"), misuse.OTHERS)
def test_a_function_that_takes_no_struct_has_its_status(name, given, status, outcomes):
    assert f"{name}{given}" in outcomes, outcomes["end"]
    assert outcomes[f"{name}{given}"] == misuse.STATUSES[status]


@pytest.mark.parametrize(("field", "value", "status"), misuse.CONTROLS)
def test_who_may_end_a_call_is_looked_at_too(field, value, status, outcomes):
    assert f"control: {field} = {value}" in outcomes, outcomes["end"]
    assert outcomes[f"control: {field} = {value}"] == misuse.STATUSES[status]


@pytest.mark.parametrize("function", [name for name, _, _ in misuse.functions()])
def test_a_function_of_nothing_answers(function, outcomes):
    assert function in outcomes, outcomes["end"]
    without_a_handle = {
        "kinema_abi_version": native.ABI_VERSION,
        "kinema_status_text": "success",
        "kinema_cpu_isa_name": outcomes["kinema_cpu_isa_name"],
        "kinema_cpu_has": 0,
        "kinema_cpu_destroy": None,
        "kinema_program_destroy": None,
        "kinema_cpu_isa": None,
    }
    missing = misuse.STATUSES["NO_POINTER"]
    counted = function.endswith(("_bytes", "_workspace", "_code_top", "_multiplies_bf16"))
    assert outcomes[function] == without_a_handle.get(function, -missing if counted else missing)


@pytest.mark.parametrize("status", misuse.STATUSES.values())
def test_every_status_has_a_sentence(status):
    text = native.cpu().library.kinema_status_text(status)
    assert text != native.cpu().library.kinema_status_text(10**6)
