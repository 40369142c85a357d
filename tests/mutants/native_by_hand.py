"""Mistakes that a kernel author makes in the native kernels, by hand, all of which must be killed; and the automatic
mutants that change nothing that can be seen, with the reason."""

from __future__ import annotations

# file: (name, text in the file, what it becomes)
MUTANTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "gemm.h": (
        (
            "the last part of the columns ends early",
            "to = tiling.panels * (split + 1) / column_splits;",
            "to = (split + 1) * (tiling.panels / column_splits);",
        ),
        (
            "the last blocks of rows are one",
            "min(task, tiling.unsplit_blocks) + split_task / column_splits",
            "min(task, tiling.unsplit_blocks)",
        ),
        (
            "every slice of the depth is packed to the same place",
            "(tiling.keeps_slices ? k / Kernel::DEPTH * tiling.slice_bytes : 0)",
            "0",
        ),
        ("the first slice is added to what was there", "tile, k > p.skip);", "tile, true);"),
        ("the gate is the value", "p.gated ? tile - tiles * tiling.tile_size : nullptr", "p.gated ? tile : nullptr"),
        ("sums of several slices share a tile", "C *tile = single_slice ? sums :", "C *tile = !p.gated ? sums :"),
        ("a block packs for the first chunk of the product", "if (chunk == from) // else", "if (chunk == 0) // else"),
        ("scales of the block's first rows", "width, scales + i * Kernel::ROWS);", "width, scales);"),
    ),
    "linear.h": (
        (
            "the second source is read from its first feature",
            "args.x2 + x2_row(args, m) + from - args.x_features",
            "args.x2 + x2_row(args, m)",
        ),
        (
            "the second source lies as the first",
            "visit(args.x2 + x2_row(args, m)",
            "visit(args.x2 + x_row(args, m)",
        ),
        ("codes without their zero point", "fma(v, inverse, zero_point)", "mul(v, inverse)"),
        (
            "infinity becomes a code",
            "scales[r].scale = codes.scale + reduce_add(non_finite);",
            "scales[r].scale = codes.scale;",
        ),
        ("scales of the first rows for all blocks", "args.x_scale[m + r] : 1.0f", "args.x_scale[r] : 1.0f"),
        ("the row's range starts below 0", "V low = set1(0.0f), high = low,", "V low = set1(-1.0f), high = low,"),
        (
            "the smallest number may be infinite",
            "range = high - low > 1e-12f ? high - low : 1e-12f",
            "range = high - low",
        ),
        (
            "a row is placed from its group's start",
            "for (int64_t i = 0; i < here; ++i)\n            to[inside + i]",
            "for (int64_t i = 0; i < here; ++i)\n            to[i]",
        ),
    ),
    "epilogue.h": (
        ("rows run on into the next sample", "s = 0;\n            ++b;", "s = 0;"),
        ("one gate for all groups", "s / args.gate_tokens * args.gate_stride_g", "0"),
        ("residual of the first sample", "args.residual + b * args.residual_stride_b", "args.residual"),
        ("scale of the gate's rows", "scales[r], value_row + n + c, lanes);", "scales[r], n + c, lanes);"),
        ("column sums of the gate", "(gate_tile != nullptr ? 2 * n + NR : n)", "(gate_tile != nullptr ? 2 * n : n)"),
        (
            "the token's scale is not applied",
            "y = mul(mul(y, set1(scales[r].scale)), scale[half]);",
            "y = mul(y, scale[half]);",
        ),
    ),
    "bf16.h": (
        ("slices of the depth are not added up", "accumulate ? add(load(to), sum) : sum", "sum"),
        ("a column behind the first vector is lost", "if (columns <= W)", "if (columns <= W + 1)"),
        ("all rows are the first", "broadcast_pair(a + r * layout.row())", "broadcast_pair(a)"),
        ("logits are not scaled", "mul(sum, set1(scale))", "sum"),
        ("sums are not rescaled", "fma(load(to), set1(scale[r]), sum)", "add(load(to), sum)"),
        ("all rows are rescaled as the first", "set1(scale[r]), sum)", "set1(scale[0]), sum)"),
        ("panels lie as far apart as an even depth's", "stored = stored_depth(p.depth, p.dtype)", "stored = p.depth"),
        ("the last of an odd depth is paired with the next", "i + 1 < count ? load_e4m3", "true ? load_e4m3"),
    ),
    "micro.h": (
        ("the last of an odd depth is lost", "for (int step = 0; k < depth;", "for (int step = 0; k + 1 < depth;"),
        ("sums are not rescaled", "fma(load(to), set1(alpha[r]), sums[r][v])", "add(load(to), sums[r][v])"),
        ("all rows are rescaled as the first", "set1(alpha[r])", "set1(alpha[0])"),
        ("a column behind the first vector is lost", "if (columns <= W)", "if (columns <= W + 1)"),
    ),
    "panels.h": (
        ("fp16 read as bf16", "store(buffer + i, load_f16(from + i));", "store(buffer + i, load_bf16(from + i));"),
        (
            "a gate's panel behind its value's",
            "panel % halves * columns + column;",
            "(halves - 1 - panel % halves) * columns + column;",
        ),
        (
            "columns behind the last are the next row's",
            "c < width && k < depth ? rows[c * depth + k] : T(0);",
            "k < depth ? rows[min(c, width - 1) * depth + k + (c >= width)] : T(0);",
        ),
    ),
    "rows.h": (
        ("the mean is not subtracted before squaring", "const V d = sub(v, center);", "const V d = v;"),
        (
            "shift read with scale's groups",
            "s / norm.shift_tokens * norm.shift_stride_g",
            "s / norm.scale_tokens * norm.shift_stride_g",
        ),
        ("RMS norm subtracts the mean", "if (norm == KINEMA_LAYER_NORM)", "if (norm != KINEMA_NO_NORM)"),
        (
            "tokens before the first rotated one are rotated",
            "position >= 0 && position < a.rope_tokens;\n        const",
            "position < a.rope_tokens;\n        const",
        ),
        (
            "one table for all samples",
            "b * a.rope_stride_b + position * (a.head_dim / 2) : 0",
            "position * (a.head_dim / 2) : 0",
        ),
        ("weights of the first head for all", "(a.across_heads ? head : head / of_operand)", "0"),
        ("all heads have the moments of the first operand", "head % of_operand == 0", "head == 0"),
        ("the second of a pair is rotated the wrong way", "x[2 * j + 1] = a * sines[j] + b", "x[2 * j + 1] = b"),
        ("x is quantized without the norm", "from = normed;", ";"),
        ("codes truncated instead of rounded", "vround(vmin(upper,", "(vmin(upper,"),
        (
            "an output is written before all are summed",
            "const int64_t b = row / blocks, first = row % blocks * BLOCK,",
            "const int64_t b = 0, first = row % blocks * BLOCK,",
        ),
        ("a term whose coefficient is 0 is read", "if (c[k] != 0.0f)\n            sum", "sum"),
        (
            "the first sample's coefficients for all",
            "a.coefficients + b * a.out_count * a.term_count",
            "a.coefficients",
        ),
        (
            "every output gets the first one's coefficients",
            "weighted_sum<UNROLL>(a, c + m * a.term_count,",
            "weighted_sum<UNROLL>(a, c,",
        ),
    ),
    "attention_keys.h": (
        ("keys beyond a sample's length are valid", "max(0, min(given, a.slots[s]))", "a.slots[s]"),
        ("lengths of the first sample for all", "a.lengths[s][b]", "a.lengths[s][0]"),
        (
            "keys are rotated by their position among all slots",
            "a.cosines[s] != nullptr ? at.slot - a.rope_start[s] : -1;",
            "a.cosines[s] != nullptr ? j - a.rope_start[s] : -1;",
        ),
        ("keys of the first segment for all", "widened(a, a.k[s], b", "widened(a, a.k[0], b"),
        (
            "a list's keys count padding slots",
            "found += max(0, min(end - slot[s], count[s]));",
            "found += max(0, min(end - slot[s], a.slots[s]));",
        ),
    ),
    "attention_i8.h": (
        ("keys keep their mean", "row[d] = k[d] - mean[d];", "row[d] = k[d];"),
        ("the mean is of all slots", "static_cast<double>(max(1, count))", "static_cast<double>(max(1, count + 1))"),
        ("the mean includes NaN", "sums[d] += k[d] - k[d] == 0.0f ? k[d] : 0.0f;", "sums[d] += k[d];"),
        ("one scale for all keys", "mul(mul(products, scale), set1(q_scale[r]))", "mul(products, set1(q_scale[r]))"),
        (
            "the zero point of a query's codes is not subtracted",
            "sub(load_i32(sums + r * NR + at), offset)",
            "load_i32(sums + r * NR + at)",
        ),
        ("all queries use the first one's scale", "set1(q_scale[r])", "set1(q_scale[0])"),
        ("non-finite numbers become ordinary codes", "return scale + reduce_add(non_finite);", "return scale;"),
        (
            "codes are truncated, not rounded",
            "add(vround(div(load(x + i), set1(scale))), center)",
            "add(div(load(x + i), set1(scale)), set1(LOGIT_CODE_MAX - 0.49f))",
        ),
    ),
    "attention_bf16.h": (
        (
            "the last of an odd number of channels is paired with NaN",
            "row[2 * pairs - 1] = 0;",
            "row[2 * pairs - 1] = 0x7fc0;",
        ),
        ("keys are placed as if alone", "key + pair * 2 * NR, row", "key + pair * NR, row"),
        (
            "a pair of values is turned",
            "load_lanes(first + d, lanes), load_lanes(second + d, lanes)",
            "load_lanes(second + d, lanes), load_lanes(first + d, lanes)",
        ),
        (
            "keys before the first are weighed",
            "for (int64_t i = j; i < from; ++i)",
            "for (int64_t i = from; i < from; ++i)",
        ),
        ("keys behind the last are weighed", "i < ceil_div(end, NR) * NR;", "i < end;"),
        (
            "masked keys keep their logits as weights",
            "if (j < to)\n        std::memset",
            "if (false)\n        std::memset",
        ),
        (
            "the row sum is of the weights as they were",
            "sums = dot_pairs(sums, round_row_pairs(weights + j, first, second), ones);",
            "round_row_pairs(weights + j, first, second);\n        sums = add(sums, add(first, second)), (void)ones;",
        ),
        (
            "a key that is not to be seen comes with its pair",
            "uint16_t pair[2 * NR] = {};",
            "uint16_t pair[2 * NR];\n        std::memcpy(pair, values + key / 2 * 2 * NR, sizeof pair);",
        ),
        ("half a pair is the first", "pair[2 * c + key % 2] = values", "pair[2 * c] = values"),
        ("a first key that is half a pair is lost", "if (from != first)", "if (false)"),
        ("a last key that is half a pair is lost", "if (to != last)", "if (false)"),
        (
            "the accumulator is replaced by half a pair",
            "acc_stride, Accumulated{true});",
            "acc_stride, Accumulated{false});",
        ),
    ),
    "attention.h": (
        (
            "the accumulator starts with old contents",
            "std::memset(acc, 0, tiles() * MR * acc_stride() * sizeof(float));",
            ";",
        ),
        ("a query sees the block before its own only", "(block + 1) * a.causal_block", "block * a.causal_block"),
        ("the offset of the queries is forgotten", "first + r + a.causal_offset", "first + r"),
        ("blocks before the first round up", "if (position % a.causal_block < 0)\n            --block;", ""),
        (
            "biases are indexed by valid key, not by slot",
            "bias[slot_of(key + j) * a.bias_stride_r]",
            "bias[(key + j) * a.bias_stride_r]",
        ),
        ("biases of the first segment's queries for the second", "(segment == 1 ? a.q_tokens[0] : 0)", "0"),
        (
            "a new row max rescales nothing",
            "alpha[r] = m[r] == -__builtin_inff() ? 0.0f : scalar_softmax_exp(m[r] - m_new);",
            ";",
        ),
        (
            "row sums are not rescaled",
            "l[r] = l[r] * alpha[r] + weigh(",
            "l[r] += weigh(",
        ),
        ("the row max is not updated", "m[r] = m_new;\n        l[r]", "l[r]"),
        ("NaN in a row without other logits is lost", "l[r] += row[j] != row[j] ? row[j] : 0.0f;", ";"),
        ("masked keys keep their logits as weights", "std::memset(row + end, 0, (to - end) * sizeof(float));", ";"),
        (
            "the tail of a row is not in the row sum",
            "std::memcpy(row + j, tail, lanes * sizeof(float));\n            weight_sum = add(weight_sum, weight);",
            "std::memcpy(row + j, tail, lanes * sizeof(float));",
        ),
        (
            "keys of a panel before the first are summed",
            "const int64_t from = max(0, lo - key), to",
            "const int64_t from = 0, to",
        ),
        (
            "lists of the first tile of queries for all",
            "const int64_t tile = first / a.query_tile;",
            "const int64_t tile = 0;",
        ),
        (
            "a list's last run is left out",
            "        attend(lo, hi);\n    }\n\n    void finish()",
            "    }\n\n    void finish()",
        ),
        (
            "residuals of the first head for all",
            "s * a.residual_stride_s + n * a.head_dim;",
            "s * a.residual_stride_s;",
        ),
        (
            "NaN in a row sum becomes 0",
            "else if (l[r] != 0.0f) // NaN must propagate\n                    y = divisor;",
            "",
        ),
    ),
    "patches.h": (
        (
            "tokens run T, W, H",
            "s / columns % rows * a.patch_h * a.x_stride_h + s % columns * a.patch_w",
            "s % rows * a.patch_h * a.x_stride_h + s / rows % columns * a.patch_w",
        ),
        (
            "samples follow each other in patches",
            "const int64_t b = (m + r) / patches.epilogue_args.tokens,",
            "const int64_t b = m / patches.epilogue_args.tokens,",
        ),
        ("one position for all samples", "e.residual_stride_b = a.position_stride_b;", "e.residual_stride_b = 0;"),
        (
            "channel-first tokens read patch first",
            "a.channel_first ? c * inside + first : first * a.channels + c",
            "first * a.channels + c",
        ),
        (
            "rows of a patch side by side",
            "(t % a.patch_t * a.patch_h + y % a.patch_h) * a.patch_w",
            "(t % a.patch_t * a.patch_h + y % a.patch_h)",
        ),
    ),
    "conv3d_copy.h": (
        (
            "the norm's floor is added",
            "vmax(vsqrt(reduce_add_each(squares)), set1(1e-12f))",
            "add(vsqrt(reduce_add_each(squares)), set1(1e-6f))",
        ),
        ("a line ends a pixel early", "i < count ? lane_sums(", "i + 1 < count ? lane_sums("),
        (
            "the norm is not scaled by the root of the channels",
            "div(set1(std::sqrt(static_cast<float>(channels))), length)",
            "div(set1(1.0f), length)",
        ),
        ("nothing is activated", "if (a.activation != KINEMA_NONE)", "if (false)"),
        ("the first pixels' lengths norm all", "if (i % W == 0)", "if (i == 0)"),
        (
            "pixels with gaps between them are taken to be dense",
            "const bool dense = a.x_stride_c == 1 && a.x_stride_w == channels;",
            "const bool dense = a.x_stride_c == 1;",
        ),
        (
            "the border on the right is left as it was",
            "std::memset(pixel, 0, a.pad_right * channels * sizeof(float));",
            ";",
        ),
        (
            "the border on the left is left as it was",
            "std::memset(line, 0, a.pad_left * channels * sizeof(float));",
            ";",
        ),
        (
            "upsampled pixels overwrite those still to be read",
            "for (int64_t i = count * a.upsample - 1; i > 0; --i)",
            "for (int64_t i = 1; i < count * a.upsample; ++i)",
        ),
        (
            "upsampled rows are not repeated",
            "inside / a.upsample * a.x_stride_h;",
            "min(inside, a.height - 1) * a.x_stride_h;",
        ),
        (
            "the past is one frame late",
            "line(shape.in_frames - shape.history + t, y));",
            "line(max(0, shape.in_frames - shape.history + t - 1), y));",
        ),
        (
            "past frames that are not all zero are skipped",
            "a.cache != nullptr && any_nonzero(line(t, y), shape.line);",
            "false;",
        ),
        (
            "the first line decides for the whole frame",
            "for (int64_t y = from; y < end; ++y)\n                if (nonzero",
            "for (int64_t y = from; y < from + 1; ++y)\n                if (nonzero",
        ),
        (
            "renewed lines include the border",
            "const float *pixel = line + a.pad_left * channels;",
            "const float *pixel = line;",
        ),
    ),
    "conv3d.h": (
        (
            "taps run down before they run right",
            "line + pos.w * a.stride_w * a.in_channels + inside, here);",
            "line + pos.w * a.in_channels + inside, here);",
        ),
        (
            "rows at stride 1",
            "pos.h * a.stride_h + taps % a.kernel_h);\n            pack_row",
            "pos.h + taps % a.kernel_h);\n            pack_row",
        ),
        ("lines that no output reads are not cached", "if (a.cache != nullptr && filled < shape.height)", "if (false)"),
        (
            "an all-zero past is skipped for all frames",
            "min(max(0, zeros - t * a.stride_t), a.kernel_t - 1)",
            "min(zeros, a.kernel_t - 1)",
        ),
        (
            "the second sample's lines follow the first's",
            "int64_t filled = 0;\n        for",
            "int64_t filled = b > 0 ? a.height : 0;\n        for",
        ),
        ("the second panel of an in-place line is the first", "n += NR, panels += p.depth * NR)", "n += NR)"),
        (
            "old sums of a skipped tap are kept",
            "tile, NR,\n                    taps > first);",
            "tile, NR,\n                    taps > 0);",
        ),
    ),
    "conv3d_few.h": (
        (
            "the bias of the first output for all",
            "(a.bias != nullptr ? a.bias[r] : 0.0f)",
            "(a.bias != nullptr ? a.bias[0] : 0.0f)",
        ),
        ("the residual is left out", "y = a.residual[at + i * R + r] + y;", ";"),
        (
            "old sums of a skipped tap are kept",
            "weights() + taps * step, tile, taps > first);",
            "weights() + taps * step, tile, taps > 0);",
        ),
        (
            "pixels beyond the line come from the next one",
            "to[c * stride + i] = i < count ? pixel[c] : 0.0f;",
            "to[c * stride + i] = i < count - 1 ? pixel[c] : 0.0f;",
        ),
        (
            "weights of a tap of time before its line",
            "panel += a.kernel_w * a.in_channels * NR)",
            "panel += a.kernel_w * NR)",
        ),
    ),
    "winograd.h": (
        ("outputs beyond the picture's last column are written", "min(w.out_w - x, OUTPUTS)", "OUTPUTS"),
        ("outputs beyond the picture's last row are written", "min(w.out_h - y, OUTPUTS)", "OUTPUTS"),
        ("a tile of too few channels is whole", "columns == OUTPUTS && lanes == W)", "columns == OUTPUTS)"),
        (
            "of a doubled frame the third row of the weight",
            "(row + row / 2) * 4 + column + column / 2",
            "row * 4 + column",
        ),
        (
            "an all-zero past is multiplied as it was",
            "const int64_t start = zeros * w.channels, k = max(from, start);",
            "const int64_t start = 0 * zeros, k = from;",
        ),
        (
            "old sums of a skipped slice are kept",
            "(g * block.frames + t) * MR * NR, NR, k > start);",
            "(g * block.frames + t) * MR * NR, NR, from > 0);",
        ),
        ("the residual is left out", "v = add(load_lanes(w.a.residual + at, lanes), v);", ";"),
        (
            "bands begin at the first row",
            "const int64_t y = (band.first + tile / w.tiles_w) * OUTPUTS,",
            "const int64_t y = tile / w.tiles_w * OUTPUTS,",
        ),
        (
            "blocks of frames begin at the first",
            "band.b * w.shape.out_t + block.frame + t;",
            "band.b * w.shape.out_t + t;",
        ),
    ),
    "winograd_transforms.h": (
        ("half a vector of channels is dropped", "if (c + KB < channels)", "if (c + W < channels)"),
        ("the middle taps are not halved", "{0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}", "{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}"),
        ("the doubled middle counts once", "to[1] = add(d[1], d[1]);", "to[1] = d[1];"),
        (
            "the second output leaves the last sum out",
            "to[1] = sub(sub(m[1], m[2]), m[3]);",
            "to[1] = sub(m[1], m[2]);",
        ),
    ),
    "math.h": (
        ("NaN stops at a bound", "vmin(high, vmax(low, x))", "vmin(vmax(x, low), high)"),
        (
            "2^128 in one scale",
            "p = mul(mul(p, exp2_int(half)), exp2_int(sub(n, half)));",
            "p = mul(p, exp2_int(n));",
        ),
        (
            "weights below e^-87 are not 0",
            "where_gt(x, set1(-87.0f), mul(vexp_small(r), exp2_from_bits(shifted)), set1(0.0f))",
            "mul(vexp_small(r), exp2_from_bits(shifted))",
        ),
        ("erf's two pieces meet elsewhere", "set1(0.927734375f)", "set1(1.5f)"),
        ("the tanh form without its cube", "fma(mul(set1(0.044715f), x), x, set1(1.0f))", "set1(1.0f)"),
    ),
}

# (file, part of the mutant's words): why nothing can be seen of it
REASONS: dict[tuple[str, str], str] = {
    ("bf16.h", "the last of an odd depth"): "x is 0 there; but behind the last panel may lie a NaN, or nothing",
    (
        "linear.h",
        "pack_bf16_as_fp32",
    ): "of tables without products of bf16, which never choose it; tests/native forces it",
    (
        "linear.h",
        "round_to_bf16",
    ): "of tables without products of bf16, which never choose it; tests/native forces it",
    ("linear.h", "pack_bf16_pairs"): "of the table with products of bf16 alone",
    ("panels.h", "columns behind the last"): "their sums are written nowhere, and zeros only make them cheap",
}


def reason(file: str, what: str) -> str | None:
    """Why a mutant survives, None if nobody has said."""
    return next((text for (known, part), text in REASONS.items() if known == file and part in what), None)
