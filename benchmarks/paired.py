"""Two runs judged on the same clips: which verdicts changed, and whether chance alone would change as many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class McNemar:
    """lost: right before and wrong after; won: the reverse. p: of the exact two-sided test that both are as likely.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947).
    """

    lost: int
    won: int
    p: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Of the verdicts on the same clips, in the same order."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} and {len(after)} verdicts: wanted one of each for every clip")
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    changed = lost + won
    tail = sum(math.comb(changed, k) for k in range(min(lost, won) + 1)) / 2**changed
    return McNemar(lost, won, min(1.0, 2 * tail))
