"""McNemar's test of verdicts on the same clips."""

import pytest

from kinema.bench.paired import mcnemar


def test_only_clips_that_changed_count():
    before = [True] * 10 + [False] * 3 + [True, False]
    after = [True] * 2 + [False] * 8 + [True] * 3 + [True, False]
    found = mcnemar(before, after)
    assert (found.lost, found.won) == (8, 3)
    assert found.p == pytest.approx(2 * (1 + 11 + 55 + 165) / 2**11)  # of 11 fair coins, at most 3 or at least 8


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (0, 6, 2 / 64), (17, 3, 0.00258)]
)
def test_known_values(lost, won, p):
    assert mcnemar([True] * lost + [False] * won, [False] * lost + [True] * won).p == pytest.approx(p, rel=1e-2)


def test_other_clips_are_refused():
    with pytest.raises(ValueError, match="for every clip"):
        mcnemar([True], [True, False])
