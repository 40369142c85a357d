"""Production cases: what Wan asks of every op, in which shapes, layouts and precisions.

Benches time them, `make aot` compiles them. A new case is a line here; a new op also counts its work in op_counts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from kinema.ops import calls
from kinema.ops.calls import Call, Functions, Inputs
from kinema.ops.common import Target

ALL = ("fp32", "bf16", "fp16", "fp8", "int8")
FLOWING = ("fp32", "bf16", "fp16")  # what flows between ops, where 8-bit precisions flow as bf16
TENSOR_CORES = ("bf16", "fp8", "int8")
TEXT = 512  # tokens of a prompt


@dataclass(frozen=True)
class Case:
    """One call of an op. prepare: packs its weights and makes its inputs; the call itself is still to be made.

    precisions: names of kinema.ops.common.PRECISIONS. narrow: why its loads cannot be 16 bytes wide, if they cannot.
    few_rows: fewer than the tensor cores of Hopper and Blackwell take, so those of Ampere are right.
    """

    op: str
    name: str
    precisions: tuple[str, ...]
    prepare: Callable[[Functions, Target, Inputs], Call] = field(repr=False)
    narrow: str | None = None
    few_rows: bool = False


@dataclass(frozen=True)
class Transformer:
    """Sizes of one model, and the numbers of tokens it is run at with the precisions to look at there."""

    name: str
    heads: int
    head_dim: int
    ffn: int
    tokens: dict[int, tuple[str, ...]]

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


TRANSFORMERS = (
    Transformer("1.3B", 12, 128, 8960, {32760: ALL, 4680: ("bf16",), 1280: ("bf16",)}),
    Transformer("14B", 40, 128, 13824, {75600: TENSOR_CORES, 32760: TENSOR_CORES}),
    Transformer("5B", 24, 128, 14336, {27280: TENSOR_CORES}),
    Transformer("sample", 3, 64, 768, {1280: ("fp32", *TENSOR_CORES), 80: ("fp32", "bf16")}),
)


# what a CPU multiplies in seconds; no GPU is built for these sizes in fp32
ON_A_CPU = Transformer("1.3B on a CPU", 12, 128, 8960, {1280: ("fp32", "bf16", "int8"), 4680: ("fp32", "bf16")})


def cpu_cases() -> tuple[Case, ...]:
    """Cases of a CPU alone."""
    return tuple(case for tokens in ON_A_CPU.tokens for of in (_layer, _normed) for case in of(ON_A_CPU, tokens))


def all_cases() -> tuple[Case, ...]:
    """Every case, the most common of each op first. Names are unique within an op."""
    return (
        *(case for model in TRANSFORMERS for tokens in model.tokens for case in _layer(model, tokens)),
        *_other_linears(),
        *_other_norms(),
        *_other_attention(),
        *_ends(),
        *_vae(),
    )


def _layer(model: Transformer, tokens: int) -> Iterator[Case]:
    """A transformer layer's calls."""
    precisions, dim, name = model.tokens[tokens], model.dim, f"{model.name} {tokens}"
    # every precision once, though 8 bits flow as bf16: what a capability record declares is built
    flowing = precisions if precisions == ALL else tuple(p for p in FLOWING if p in precisions)
    eight = tuple(p for p in ("fp8", "int8") if p in precisions)
    for what, into, out, given in (
        ("qkv", dim, 3 * dim, {}),
        ("out", dim, dim, {"gate": 1, "residual": True}),
        ("cross out", dim, dim, {"residual": True}),
        ("up", dim, model.ffn, {"activation": "gelu_tanh"}),
        ("down", model.ffn, dim, {"gate": 1, "residual": True}),
    ):
        yield Case("linear", f"{name} {what}", precisions, partial(calls.linear, tokens, into, out, **given))
    yield Case("norm_modulate", f"{name} modulated", flowing, partial(calls.modulated, tokens, dim, 1))
    yield Case("norm_modulate", f"{name} affine", flowing, partial(calls.affine, tokens, dim, "layer"))
    if eight:
        yield Case(
            "norm_modulate", f"{name} to 8 bits", eight, partial(calls.modulated, tokens, dim, 1, quantized=True)
        )
        yield Case("quantize", f"{name} attended", eight, partial(calls.quantize, tokens, dim))
        yield Case("quantize", f"{name} hidden", eight, partial(calls.quantize, tokens, model.ffn))
    size = (model.heads, model.head_dim)
    both = partial(calls.qk, tokens, *size, operands=2, parts=3, rope=tokens)
    yield Case("qk_norm_rope", f"{name} qk", flowing, both)
    yield Case("qk_norm_rope", f"{name} cross q", flowing, partial(calls.qk, tokens, *size))
    yield Case("attention", f"{name} self", flowing, partial(calls.attention, *size, tokens, tokens, fused=True))
    yield Case("attention", f"{name} cross", flowing, partial(calls.attention, *size, tokens, TEXT))


def _normed(model: Transformer, tokens: int) -> Iterator[Case]:
    """The same linears of a norm, which a CPU's product does on its way; a GPU's are the two calls of `_layer`."""
    for what, out, activation in (("qkv", 3 * model.dim, "none"), ("up", model.ffn, "gelu_tanh")):
        prepare = partial(calls.linear, tokens, model.dim, out, norm=1, activation=activation)
        yield Case("linear", f"{model.name} {tokens} {what} of a norm", model.tokens[tokens], prepare)


def _other_linears() -> Iterator[Case]:
    yield Case("linear", "1.3B text kv", TENSOR_CORES, partial(calls.linear, TEXT, 1536, 3072))
    yield Case("linear", "1.3B time", ("fp32",), partial(calls.linear, 1, 1536, 9216), few_rows=True)
    yield Case("linear", "1.3B out of the model", ("bf16",), partial(calls.linear, 32760, 1536, 64))
    yield Case(
        "linear", "5B 27280 down, gate per token", ("bf16",),
        partial(calls.linear, 27280, 14336, 3072, gate=27280, residual=True),
    )  # fmt: skip
    yield Case(
        "linear", "two sources", TENSOR_CORES, partial(calls.linear, 4680, 3072, 3072, second=12288, residual=True)
    )
    gated = partial(calls.linear, TEXT, 4096, 10240, gated=True, activation="gelu_tanh", bias=False)
    yield Case("linear", "UMT5 gated", ALL, gated)
    yield Case("linear", "16 tokens", ALL, partial(calls.linear, 16, 1536, 4608), few_rows=True)
    yield Case("linear", "VAE 384 of 6240", ("fp32",), partial(calls.linear, 6240, 384, 1152))


def _other_norms() -> Iterator[Case]:
    yield Case("norm_modulate", "5B 27280 per token", ("bf16",), partial(calls.modulated, 27280, 3072, 27280))
    yield Case("norm_modulate", "UMT5 rms", ("fp32", "bf16"), partial(calls.affine, TEXT, 4096, "rms"))
    yield Case("norm_modulate", "VAE rms of 384", ("fp32",), partial(calls.affine, 6240, 384, "rms"))
    yield Case("qk_norm_rope", "1.3B text k", ("bf16",), partial(calls.qk, TEXT, 12, 128, parts=2))
    yield Case("qk_norm_rope", "1.3B text v", ("bf16",), partial(calls.qk, TEXT, 12, 128, parts=2, norm="none"))
    yield Case(
        "qk_norm_rope", "joint, per head, half-split", ("bf16",),
        partial(calls.qk, 33016, 24, 128, parts=3, rope=32760, across=False, interleaved=False),
    )  # fmt: skip


def _other_attention() -> Iterator[Case]:
    for what, queries, keys, given in (
        ("folded text", 32760, 73, {"bias": (1, 1, 1, 73)}),
        ("two lengths", 32760, TEXT, {"lengths": True}),
        ("causal", 32760, 32760, {"causal": 4680}),
        ("one tile in nine", 32760, 32760, {"sparse": 9}),
        ("chunk and cache", 4680, 4680, {"cache": 28080}),
    ):
        yield Case("attention", f"1.3B {what}", ("bf16",), partial(calls.attention, 12, 128, queries, keys, **given))
    eight = partial(calls.attention, 12, 128, 32760, 32760, fused=True, quantize="fp8")
    yield Case("attention", "1.3B in e4m3", ("fp8",), eight)
    umt5 = partial(calls.attention, 64, 64, TEXT, TEXT, bias=(1, 64, TEXT, TEXT), scale=1.0)
    yield Case("attention", "UMT5", FLOWING, umt5)
    yield Case("attention", "VAE 384 of 6240", ("fp32",), partial(calls.attention, 1, 384, 6240, 6240))


def _ends() -> Iterator[Case]:
    """From latents to tokens and back, and the scheduler."""
    pairs = "a patch is two neighbours in memory"
    for name, into, out, dim, size in (
        ("1.3B 32760", 16, 16, 1536, (21, 60, 104)),
        ("14B I2V 75600", 36, 16, 5120, (21, 90, 160)),
        ("5B 27280", 48, 48, 3072, (31, 44, 80)),
        ("sample 80", 16, 16, 192, (5, 8, 8)),
    ):
        first = name == "1.3B 32760"
        flowing = ALL if first else FLOWING
        yield Case("patch_embed", name, flowing, partial(calls.patch_embed, into, dim, size), narrow=pairs)
        yield Case("unpatchify", name, flowing, partial(calls.unpatchify, out, size), narrow=pairs)
        step = partial(calls.scheduler_step, (out, *size))
        yield Case("scheduler_step", f"{name} UniPC", ALL if first else ("fp32",), step)


def _vae() -> Iterator[Case]:
    """Wan 2.1's decoder at 480×832, a latent frame at a time, its encoder's halvings, and the sample model's."""
    thin = "three channels are 12 bytes"
    small, half, full = (60, 104), (240, 416), (480, 832)
    for name, into, out, kernel, size, given in (
        ("in", 16, 384, (3, 3, 3), (1, *small), {}),
        ("384", 384, 384, (3, 3, 3), (1, *small), {"norm": True, "residual": True}),
        ("time", 384, 768, (3, 1, 1), (2, 120, 208), {}),
        ("up", 384, 192, (1, 3, 3), (4, 120, 208), {"upsample": 2}),
        ("192", 192, 192, (3, 3, 3), (4, *half), {"norm": True, "residual": True}),
        ("96", 96, 96, (3, 3, 3), (4, *full), {"norm": True, "residual": True}),
        ("shortcut", 192, 384, (1, 1, 1), (2, 120, 208), {}),
        ("out", 96, 3, (3, 3, 3), (4, *full), {"norm": True}),
        ("halving", 96, 96, (1, 3, 3), (4, *full), {"stride": (1, 2, 2), "padding": (0, 1, 0, 1)}),
        ("halving of time", 192, 192, (3, 1, 1), (4, 120, 208), {"stride": (2, 1, 1)}),
    ):
        precisions = ALL if name == "384" else ("fp32",)  # a VAE is fp32 in all of them
        yield Case("conv3d", f"VAE {name}", precisions, partial(calls.conv3d, into, out, kernel, size, **given))
    first = partial(calls.conv3d, 3, 96, (3, 3, 3), (4, *full))
    yield Case("conv3d", "VAE in of the encoder", ("fp32",), first, narrow=thin)
    sample = partial(calls.conv3d, 16, 16, (3, 3, 3), (4, 64, 64), norm=True, residual=True)
    yield Case("conv3d", "sample 16", ("fp32",), sample)
