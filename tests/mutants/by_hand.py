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
            "at = b * shift_b + (s // shift_tokens).to(tl.int64) * shift_g",
            "at = b * shift_b + (s // scale_tokens).to(tl.int64) * shift_g",
        ),
        ("the token's scale is not applied", "h = h * tl.div_rn(1.0, step)[:, None]", "h = h"),
    ),
    "patch_embed/triton.py": (
        (
            "the patch read as (pt, pw, ph)",
            "i, j, m = k // (PW * PH) % PT, k // PW % PH, k % PW",
            "i, j, m = k // (PW * PH) % PT, k % PH, k // PH % PW",
        ),
        (
            "tokens run T, W, H",
            "(s // width % height).to(tl.int64), (s % width)",
            "(s % height).to(tl.int64), (s // height % width)",
        ),
        ("weights in bf16", "acc = dot(a0, w1, acc)", "acc = acc"),
        ("weights in two bf16 parts", "acc = dot(a0, w2, acc)", "acc = acc"),
        ("fp16 cut to bf16", "acc = dot(a1, w0, acc)", "acc = acc"),
        (
            "one position for all samples",
            "at = position + (b * position_b + s * position_s)",
            "at = position + (s * position_s)",
        ),
    ),
    "unpatchify/triton.py": (
        (
            "channel-first tokens read patch first",
            "c, i, j = group // (PT * PH), group // PH % PT, group % PH",
            "c, i, j = group % CHANNELS, group // CHANNELS // PH, group // CHANNELS % PH",
        ),
        ("tokens run T, W, H", "s // width % height, s % width", "s % height, s // height % width"),
        ("rows of a patch side by side", "(h * PH)[None, :] + j[:, None]", "h[None, :] + (j * height)[:, None]"),
        ("padded columns written", "real[None, :, None] & inside[None, None, :]", "real[None, :, None]"),
        ("one batch stride for both", "x_rows = x + (b * x_b", "x_rows = x + (b * y_b"),
    ),
    "scheduler_step/triton.py": (
        ("a term without coefficients is read", "+ largest > 0.0)", "+ largest >= 0.0)"),
        (
            "read only if the first output wants it",
            "largest = tl.maximum(largest, tl.abs(tl.load(coefficients + m * coefficients_m + k * coefficients_k)))",
            "largest = largest",
        ),
        ("everyone gets the first sample's coefficients", "coefficients += b * coefficients_b", "coefficients += 0"),
        ("one batch stride for all terms", "terms[k] + b * terms_b[k]", "terms[k] + b * terms_b[0]"),
        ("outputs lie as the first one does", "outputs[m] + b * outputs_b[m]", "outputs[m] + b * outputs_b[0]"),
        ("sums of float64 in float32", "return wide(x).to(tl.float64)", "return wide(x)"),
    ),
    "conv3d/triton_kernel.py": (
        ("one frame late", "t * ST - FRONT", "t * ST - FRONT - 1"),
        ("frames run on into the next sample", "m // width // height % frames", "m // width // height"),
        ("no row above the frame is left out", "(hi >= 0) & (hi < x_height)", "(hi < x_height)"),
        ("no column right of the frame is left out", "(wi >= 0) & (wi < x_width)", "(wi >= 0)"),
        ("taps run down before they run right", "tap // KW % KH, tap % KW", "tap % KH, tap // KH % KW"),
        ("the past is read before the clip", "inside = ti >= 0", "inside = ti >= -1"),
        (
            "upsampled rows are not repeated",
            "(hi // UPSAMPLE).to(tl.int64) * x_h",
            "hi.to(tl.int64) * x_h",
        ),
        ("the second columns are the first", "_store(other, n + COLUMNS,", "_store(other, n,"),
    ),
    "conv3d/triton_prepare.py": (
        ("the norm's floor is under the root", "tl.maximum(length, 1e-12)", "tl.sqrt_rn(length * length + 1e-12)"),
        ("the norm is not scaled by the root of the channels", "g = root * wide(", "g = wide("),
        ("a short chunk forgets the past", "if i >= frames:", "if i > frames:"),
        (
            "the cache keeps what came in, not what was made",
            "narrow(wide(made), cache.dtype",
            "narrow(value, cache.dtype",
        ),
        ("the first frames are kept", "if t >= frames - history:", "if t < history:"),
        (
            "activation before the norm",
            "value = wide(tl.load(x_at, mask=mask, other=0.0))",
            "value = activate(wide(tl.load(x_at, mask=mask, other=0.0)), ACTIVATION)",
        ),
    ),
}
