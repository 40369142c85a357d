"""The questions themselves: each says what it decides, fits its minute and can be asked; and the parts they share."""

import pkgutil
from types import SimpleNamespace

import pytest
import torch

from kinema.bench.gpu_session import questions
from kinema.bench.gpu_session.choice import known
from kinema.bench.gpu_session.drawn import Drawn, ExactDrawn, drawn_weights
from kinema.bench.gpu_session.kernels import time_kernel
from kinema.bench.gpu_session.profiles import summary
from kinema.bench.gpu_session.question import Activity, Question
from kinema.bench.gpu_session.results import wrong_fields

NAMES = [module.name for module in pkgutil.iter_modules(questions.__path__)]
RUN = 540.0  # seconds


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_a_question(name):
    question = known()[name]
    assert isinstance(question, Question), question
    assert question.decides and question.serves and question.decides[0].islower()
    assert 1 <= question.value <= 10 and question.seconds <= question.limit <= 60


def test_the_most_valuable_fit_a_run():
    """Not all: what is left is asked with --missing."""
    costs = [q for q in known().values() if isinstance(q, Question)]
    assert sum(q.seconds for q in costs if q.value >= 8 or q.first) < RUN
    assert sum(q.seconds for q in costs) < 2 * RUN


def test_a_device_draws_the_same_numbers_again_and_in_float64():
    one, again, exact = (made(torch.device("cpu"), 3) for made in (Drawn, Drawn, ExactDrawn))
    for dtype in (torch.float32, torch.bfloat16):
        a, b, c = (new(3, 5, dtype=dtype) for new in (one, again, exact))
        assert a.dtype == dtype and torch.equal(a, b) and c.dtype == torch.float64 and torch.equal(a.double(), c)
    assert not torch.equal(one(3, 5), one(3, 5))


def test_a_models_weights_are_the_same_at_every_look():
    shapes = {"a.weight": (8, 512), "a.bias": (8,), "norm.weight": (512,)}
    weights, other = (drawn_weights(shapes, torch.device("cpu"), seed=seed) for seed in (0, 1))
    assert torch.equal(weights["a.weight"], weights["a.weight"])
    assert not torch.equal(weights["a.weight"], other["a.weight"])
    assert 0.8 < float(weights["a.weight"].std()) * 512**0.5 < 1.2
    assert float(weights["norm.weight"].min()) >= 0.5 and float(weights["norm.weight"].max()) <= 1.5


class Session(SimpleNamespace):
    """Keeps what it is told."""

    def check(self, case, result, truth, **given):
        self.checked = (case, result, truth)
        return self.right

    def seconds(self, call):
        call()
        return [1.0]

    def report(self, case, **fields):
        self.reported = (case, fields)

    def skip(self, case, reason):
        self.skipped = (case, reason)


def test_a_wrong_kernel_is_not_timed():
    calls = []
    session = Session(right=False)
    time_kernel(session, "k", lambda: calls.append(1) or torch.ones(3), torch.zeros(3))
    assert len(calls) == 1 and not hasattr(session, "reported")
    session = Session(right=True)
    time_kernel(session, "k", lambda: torch.ones(3), torch.ones(2), read=lambda y: y[:2], tile="8")
    assert session.reported == ("k", {"tile": "8", "seconds": [1.0]}) and session.checked[1].shape == (2,)


def test_a_kernel_that_there_is_not_is_skipped_with_its_reason():
    def broken():
        raise RuntimeError("out of resources:\n shared memory")

    session = Session(right=True)
    time_kernel(session, "k", broken, None)
    assert session.skipped == ("k", "RuntimeError: out of resources: shared memory") and not hasattr(
        session, "reported"
    )


def test_a_profile_knows_what_ran_and_when_nothing_did():
    us = 1e-6
    activities = [
        Activity("a", 0.0, 10 * us),
        Activity("b" * 200, 12 * us, 3 * us),
        Activity("a", 13 * us, 20 * us),  # beside b
        Activity("c", 40 * us, 1 * us),
    ]
    fields = summary(activities)
    assert wrong_fields(fields) is None
    assert fields["activities"] == 4 and fields["span_seconds"] == pytest.approx(41 * us)
    assert fields["idle_us"] == pytest.approx(2 + 7)
    assert [(k["name"][:2], k["count"], k["us"]) for k in fields["kernels"]] == [
        ("a", 2, 30),
        ("bb", 1, 3),
        ("c", 1, 1),
    ]
    assert fields["timeline"] == [[0, 0.0, 10.0], [1, 12.0, 3.0], [0, 13.0, 20.0], [2, 40.0, 1.0]]
    assert len(fields["kernels"][1]["name"]) == 100
    assert summary([]) == {"activities": 0}
