"""The implementation that docs/adding_a_kernel.md writes: it keeps the contract, and whole clips are made with it."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kinema import VideoPipeline
from kinema.errors import UnsupportedError
from kinema.ops import plan, scheduler_step
from kinema.ops.common import Implementation

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_kernel.md"
MODULE = "kinema.ops.scheduler_step.toy"
TOY = Implementation("toy", MODULE)
OP = replace(scheduler_step.OP, implementations=(TOY, scheduler_step.OP.implementations[-1]))


def neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"toy_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CONTRACT = neighbour("test_scheduler_step_contract")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The page's file, imported as if it lay in its place; the shapes of the terms that it is called with."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module, seen = ModuleType(MODULE), []
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(compile(source, str(PAGE), "exec"), vars(module))
    run = module.scheduler_step

    def counted(terms, coefficients, *, out=None):
        seen.append(tuple(terms[0].shape))
        return run(terms, coefficients, out=out)

    module.scheduler_step = counted
    return seen


@pytest.fixture
def listed(monkeypatch):
    """The plan's table has it, just before the reference."""
    ours = scheduler_step.OP
    with_toy = replace(ours, implementations=(*ours.implementations[:-1], TOY, ours.implementations[-1]))
    monkeypatch.setattr(plan, "OPS", tuple(with_toy if op.name == ours.name else op for op in plan.OPS))


@pytest.mark.parametrize("name", CONTRACT.CASES)
def test_it_keeps_the_contract(impl, name):
    CONTRACT.check_scheduler_step(impl, CONTRACT.CASES[name])


def test_the_page_shows_the_record():
    assert f'Implementation("toy", "{MODULE}"),' in PAGE.read_text()


def test_auto_does_not_take_it_and_says_why(listed):
    choice = next(c for c in plan.plan_ops(plan.target_for("cpu")).choices if c.op == "scheduler_step")
    assert choice.backend != "toy" and dict(choice.rejected)["toy"] == f"{choice.backend} is preferred"


def test_the_sample_model_runs_with_it(listed, calls):
    request = {"prompt": "a red circle moving left", "num_inference_steps": 4, "seed": 0}
    forced = VideoPipeline.from_pretrained("sample", device="cpu", backend="toy")
    output = forced(**request)
    assert output.stats.backends["scheduler_step"] == "toy"
    assert "toy" not in {backend for op, backend in output.stats.backends.items() if op != "scheduler_step"}
    steps = [shape for shape in calls if len(shape) == 5]  # the others are a forward's modulations
    assert steps == [(1, 16, 5, 8, 8)] * 4
    made = len(calls)
    usual = VideoPipeline.from_pretrained("sample", device="cpu")(**request)
    assert usual.stats.backends["scheduler_step"] != "toy" and len(calls) == made
    assert output.frames.std() > 0.02
    assert np.abs(output.frames - usual.frames).max() < 1e-4


def test_where_it_is_not_listed_it_cannot_be_forced():
    with pytest.raises(UnsupportedError, match="'toy' has no op in this build"):
        VideoPipeline.from_pretrained("sample", device="cpu", backend="toy")
