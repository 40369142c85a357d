"""Survivors of the mutation run that change nothing that can be seen, and why."""

from __future__ import annotations

# (op, part of the mutant's words): the reason
REASONS: dict[tuple[str, str], str] = {
    ("patch_embed", "0.0 becomes 0.125"): "beyond the last feature patches and weights are both 0, and one is enough",
}


def reason(op: str, what: str) -> str | None:
    """Why a mutant survives, None if nobody has said."""
    return next((text for (known, part), text in REASONS.items() if known == op and part in what), None)
