"""Mistakes that a kernel author makes, by hand: (name, text in the file, what it becomes). All must be killed."""

from __future__ import annotations

MUTANTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "norm_modulate/triton.py": (
        (
            "masked channels count in the variance",
            "h = tl.where(real[None, :], h - mean[:, None], 0.0)",
            "h = h - mean[:, None]",
        ),
        (
            "shift read with scale's groups",
            "at = b * shift_b + (s // shift_tokens) * shift_g",
            "at = b * shift_b + (s // scale_tokens) * shift_g",
        ),
        ("the token's scale is not applied", "h = tl.div_rn(h, tl.zeros_like(h) + step[:, None])", "h = h"),
    ),
}
