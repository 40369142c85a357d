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
        ("sums of float64 in float32", "return fp32(x).to(tl.float64)", "return fp32(x)"),
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
        ("the norm is not scaled by the root of the channels", "g = root * fp32(", "g = fp32("),
        ("a short chunk forgets the past", "if i >= frames:", "if i > frames:"),
        (
            "the cache keeps what came in, not what was made",
            "cast(fp32(made), cache.dtype",
            "cast(value, cache.dtype",
        ),
        ("the first frames are kept", "if t >= frames - history:", "if t < history:"),
        (
            "activation before the norm",
            "value = fp32(tl.load(x_at, mask=mask, other=0.0))",
            "value = activate(fp32(tl.load(x_at, mask=mask, other=0.0)), ACTIVATION)",
        ),
    ),
    "attention/triton_kernel.py": (
        ("acc is not rescaled when the row maximum rises", "acc *= alpha[:, None]", "acc *= 1.0"),
        ("row sums are not rescaled", "l_i = l_i * alpha + ", "l_i = l_i + "),
        ("the key that ends a tile is left out", "readable = (key < high - at)", "readable = (key < high - at - 1)"),
        ("one key too many is read", "readable = (key < high - at)", "readable = (key < high - at + 1)"),
        (
            "the row sum is of the weights before rounding",
            "weights, counted = rounded(weights, v.dtype, CUDA)",
            "counted = weights\n    weights, _ = rounded(weights, v.dtype, CUDA)",
        ),
        (
            "a value's scale is its key's",
            "product * tl.load(keys.v_scale + block)",
            "product * tl.load(keys.k_scale + block)",
        ),
        ("every block has the first one's scale", "// SCALED_KEYS\n", "// SCALED_KEYS * 0\n"),
        (
            "a query's scale is left out",
            "row_scale *= tl.load(queries.scale",
            "row_scale *= 1.0 + 0.0 * tl.load(queries.scale",
        ),
        ("weights fill e4m3 to its end and beyond", "(base - PEAK)[:, None]", "(base - PEAK - 1.0)[:, None]"),
        ("causal to the token, not to the block", "(i // causal[0] + 1) * causal[0]", "i + 1"),
        ("the cache's offset is lost", "i += causal[1]", "i += 0"),
        ("lengths of the first sample for all", "tl.load(keys.lengths + b)", "tl.load(keys.lengths)"),
        ("the second segment's bias is the first's", "((first + at + key).to(tl.int64)", "((at + key).to(tl.int64)"),
        ("bias in units of log 2", "+ LOG2_E * fp32(_load(bias_at", "+ fp32(_load(bias_at"),
        ("nothing seen gives NaN", "tl.where(l_i > 0.0, l_i, 1.0)", "l_i"),
        (
            "the second segment's queries go to the first",
            "elif second:\n            _store(queries[1]",
            "elif second:\n            _store(queries[0]",
        ),
        ("all parts share the first keys", "tl.minimum(part * size, count), tl", "tl.minimum(0 * size, count), tl"),
        (
            "the residual is lost",
            "if residual is not None:\n            y += fp32(",
            "if residual is not None:\n            y += 0.0 * fp32(",
        ),
    ),
    "attention/triton_combine.py": (
        ("parts are added as they are", "alpha = tl.exp2(tl.load(", "alpha = 1.0 + 0.0 * tl.exp2(tl.load("),
        (
            "the last part is forgotten",
            "for part in tl.range(0, splits):\n        alpha",
            "for part in tl.range(0, splits - 1):\n        alpha",
        ),
        ("the second segment reads the first's sums", "* queries + before + s", "* queries + s"),
    ),
    "attention/triton_prepare.py": (
        (
            "keys turn the other way",
            "first * c - second * z, first * z + second * c",
            "first * c + second * z, second * c - first * z",
        ),
        ("tokens before the rotation's start turn", "turned = (r >= 0) & (r < rotated)", "turned = (r < rotated)"),
        ("slots behind the length decide the scale", "real = (s < count)[:, None]", "real = (s < tokens)[:, None]"),
        ("the scale is of the first halves", "tl.maximum(_size(first), _size(second))", "_size(first)"),
    ),
    "linear/triton_kernel.py": (
        ("the bias is lost", "h = h + tl.load(bias + n", "h = h + 0.0 * tl.load(bias + n"),
        ("the residual is gated too", "h = h + fp32(tl.load(residual_rows", "h = h * fp32(tl.load(residual_rows"),
        ("the activation of the half that has none", "h = g * _scaled", "h = activate(g, ACTIVATION) * _scaled"),
        (
            "gate and value change places",
            "h = g * _scaled_and_biased(h, weight_scale, bias, n + columns, exists)",
            "h = h * _scaled_and_biased(g, weight_scale, bias, n + columns, exists)",
        ),
        ("the value half takes the gate's bias", "bias, n + columns, exists)", "bias, n, exists)"),
        ("features behind the last tile are read", "here = k < features - at", "here = k < features - at + 1"),
        (
            "the second source starts at the weight's first column",
            "columns, more, features, width,",
            "columns, more, 0, width,",
        ),
        (
            "the last group of rows is as tall as the others",
            "height = tl.minimum(down - first, GROUP)",
            "height = GROUP",
        ),
        (
            "gates by token, not by group of tokens",
            "(s // gate_tokens).to(tl.int64) * gate_g",
            "s.to(tl.int64) * gate_g",
        ),
        ("one gate for all samples", "gate_rows = gate + b * gate_b", "gate_rows = gate"),
        ("a token's scale is its place in the sample", "tl.load(x_scale + b * tokens + s", "tl.load(x_scale + s"),
        ("parts of columns out of order", "return _halves(a) + _halves(b)", "return _halves(b) + _halves(a)"),
    ),
    "quantize/triton.py": (
        (
            "the scale is of the first source",
            "largest = tl.maximum(largest, tl.max(tl.abs(g), axis=1))",
            "largest = largest",
        ),
        ("signs count", "largest = tl.max(tl.abs(h), axis=1)", "largest = tl.max(h, axis=1)"),
        ("the second source lies over the first", "to + channels + d[None, :]", "to + d[None, :]"),
        ("rows of zeros divide by zero", "tl.maximum(largest, 1e-12)", "largest"),
    ),
    "qk_norm_rope/triton.py": (
        (
            "empty channels count in the variance",
            "h1 = tl.where(inside & (pair < (HEAD_DIM + 1) // 2), h1 - mean, 0.0)",
            "h1 = h1 - mean",
        ),
        (
            "the norm is over the padded heads",
            "HEADS * HEAD_DIM if ACROSS else HEAD_DIM\n",
            "(HEADS + 1) * HEAD_DIM if ACROSS else HEAD_DIM\n",
        ),
        ("turned the other way", "h1 * c1 - h2 * s1, h1 * s1 + h2 * c1", "h1 * c1 + h2 * s1, h2 * c1 - h1 * s1"),
        (
            "all heads have the first group's weights",
            "at = weight + (n + i) * HEAD_DIM + tile",
            "at = weight + n * HEAD_DIM + tile",
        ),
        ("tokens after the rotation turn", "(r >= 0) & (r < rotated) & (pair", "(r >= 0) & (pair"),
        ("one table for all samples", "at = b * sin_b + r", "at = r"),
    ),
}
