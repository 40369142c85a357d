"""Survivors of the mutation run that change nothing that can be seen, and why."""

from __future__ import annotations

REPEATED = "rows beyond the end repeat the last one, which is stored again as it is"

# (op, part of the mutant's words): the reason
REASONS: dict[tuple[str, str], str] = {
    ("patch_embed", "0.0 becomes 0.125"): "beyond the last feature patches and weights are both 0, and one is enough",
    ("patch_embed", "(row < rows)[:, None] & exists[None, :] without its left side"): REPEATED,
    (
        "attention",
        "_load:5: 0.0 becomes 0.125",
    ): "where a head has no channel, queries and keys are 0: one is enough",
    (
        "attention",
        "_load:7: 0.0 becomes 0.125",
    ): "absent channels meet a query's 0, keys that may not be read have a weight of 0",
    ("attention", "_load:9: 0.0 becomes 0.125"): "the same, and logits of keys that may not be read are replaced",
    (
        "attention",
        "_seen:8: tl.minimum(row + ROWS, end) by maximum",
    ): "a bound that is too high: the keys beyond it are masked row by row",
    ("attention", "combine_kernel:30: 0.0 becomes 0.125"): "of rows that are not stored",
    (
        "attention",
        "_seen:8: tl.minimum(row + ROWS, end) - 1 with Add",
    ): "a bound that is too high: the keys beyond it are masked row by row",
    ("attention", "_tile:45: (c + 1) * CHUNK > HEAD_DIM with GtE"): "a mask more, which every channel passes",
    ("qk_norm_rope", "_store:11: d < CUT with LtE"): "the value that it writes is written again by the second halves",
    ("conv3d", "real[:, None] & exists[None, :] without its left side"): REPEATED,
}


def reason(op: str, what: str) -> str | None:
    """Why a mutant survives, None if nobody has said."""
    return next((text for (known, part), text in REASONS.items() if known == op and part in what), None)
