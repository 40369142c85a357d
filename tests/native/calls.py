"""Random calls of every native op, as its contract allows them: odd sizes, strides, segments, lists, formats, options.

A call is drawn once and made twice, by the native kernels and by the reference.
"""

import copy
import dataclasses
import importlib
import random

import torch

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import PRECISIONS, Quantized, Rope, Target
from kinema.ops.norm_modulate import Norm
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.quantize import reference as quantize_reference

NAN = float("nan")
FP32 = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])
# how far results may lie apart, as a part of the largest, or of 1: numbers that are rounded on the way, or not
ROUNDED = {"fp32": 1e-5, "fp16": 1e-5, "bf16": 0.02, "fp8": 0.02, "int8": 0.04}


@dataclasses.dataclass(frozen=True)
class Call:
    """op(**arguments), with a weight that is packed from `weight` first. close: how far from the reference."""

    op: str
    arguments: dict
    weight: dict | None = None
    close: float = 1e-5
    backend: str = "cpu"

    def make(self, backend=None):
        """All that the call returns or leaves behind, as tensors. The arguments are copied, strides and all."""
        module = importlib.import_module(f"kinema.ops.{self.op}.{(backend or self.backend).replace('-', '_')}")
        given, weight = copy.deepcopy((self.arguments, self.weight))
        if weight is not None:
            target = weight.pop("target", FP32)
            if backend == "reference":  # it would round x otherwise than the native kernels do
                target = Target(target.device, dataclasses.replace(target.precision, quantize_activations=None))
            given["weight"] = getattr(module, f"pack_{self.op}")(**weight, target=target)
        results = getattr(module, self.op)(**given)
        results = results if isinstance(results, tuple) else (results,)
        kept = (given["cache"],) if given.get("cache") is not None else ()
        return tuple(r.dequantize() if isinstance(r, Quantized) else r for r in (*results, *kept))

    def differs(self):
        """What of the native result is not the reference's, or None."""
        native = self.make()
        if native[0].numel() == 0:  # then there is nothing new for a cache either
            kept = self.arguments.get("cache")
            return None if kept is None or torch.equal(native[1], kept) else "changed the cache"
        for got, wanted in zip(native, self.make("reference"), strict=True):
            if got.shape != wanted.shape:
                return f"gave {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
            error = (got - wanted).abs().max() / wanted.abs().max().clamp(min=1.0) if got.numel() else 0.0
            if not float(error) <= self.close:
                return f"off by {float(error):.2e}, at most {self.close:.0e} allowed"
        return None


class Dice(random.Random):
    """The sizes, choices and tensors of one call."""

    def __init__(self, seed):
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(self.getrandbits(32))

    def few(self, most):
        return min(self.randint(1, most), self.randint(1, most))

    def some(self, most):
        return 0 if self.random() < 0.04 else self.few(most)

    def maybe(self, make, *given, chance=0.4, **named):
        return make(*given, **named) if self.random() < chance else None

    def number(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def laid(self, drawn, dense=1, repeats=True):
        """The same numbers at other strides: with gaps, turned, or repeated; the last `dense` axes stay dense."""
        free = drawn.ndim - dense
        way = self.choice(("dense", "gaps", "turned", "repeated"))
        if way == "gaps" and drawn.ndim:
            axis, before, behind = self.randrange(min(free + 1, drawn.ndim)), self.randint(0, 3), self.randint(0, 3)
            size = list(drawn.shape)
            size[axis] += before + behind
            return torch.full(size, NAN).narrow(axis, before, drawn.shape[axis]).copy_(drawn)
        if way == "turned":
            order = [*self.sample(range(free), free), *range(free, drawn.ndim)]
            return drawn.permute(order).contiguous().permute([order.index(axis) for axis in range(drawn.ndim)])
        if way == "repeated" and repeats and free and drawn.shape[0]:
            return drawn[:1].expand(drawn.shape)
        return drawn

    def tensor(self, *shape, dense=1):
        return self.laid(self.number(*shape), dense)

    def buffer(self, *shape, dense=1):
        return self.laid(torch.full(shape, NAN), dense, repeats=False)

    def rows(self, batch, tokens, channels):
        """A modulation [B or 1, G, C]."""
        groups = self.choice([g for g in range(1, tokens + 1) if tokens % g == 0] or [1])
        return self.tensor(self.choice((1, batch)), groups, channels)

    def norm(self, batch, tokens, channels):
        weight, bias = (self.maybe(self.number, channels) for _ in range(2))
        scale, shift = (self.maybe(self.rows, batch, tokens, channels) for _ in range(2))
        return Norm(1e-5, self.choice(("layer", "rms")), weight, bias, scale, shift)

    def rope(self, batch, tokens, head_dim):
        turned = self.randint(0, tokens)
        shape = self.choice(((turned,), (1, turned), (batch, turned)))
        cos, sin = (self.number(*shape, head_dim // 2) for _ in range(2))
        return Rope(cos, sin, self.random() < 0.5, self.randint(0, tokens - turned))


def linear(dice):
    precision = dice.choice(list(PRECISIONS["cpu"]))
    batch, tokens, into, out = dice.some(3), dice.some(60), dice.few(90), dice.few(90)
    if dice.random() < 0.1:  # several slices of the depth, or blocks of columns
        into, out = dice.choice(((dice.randint(500, 900), out), (into, dice.randint(700, 900))))
    gated = dice.random() < 0.3
    weight = {
        "weight": dice.number(out, into) * into**-0.5,
        "bias": dice.maybe(dice.number, out),
        "gate_weight": dice.number(out, into) * into**-0.5 if gated else None,
        "gate_bias": dice.number(out) if gated and dice.random() < 0.5 else None,
        "target": Target(torch.device("cpu"), PRECISIONS["cpu"][precision]),
    }
    if gated and weight["gate_bias"] is None:
        weight["bias"] = None
    elif gated and weight["bias"] is None:
        weight["gate_bias"] = None
    x = dice.tensor(batch, tokens, into)
    form, norm = dice.choice(("plain", "pair", "quantized", "normed")), None
    if form == "pair":
        first = dice.randint(0, into)
        x = (dice.laid(x[..., :first].clone()), dice.laid(x[..., first:].clone()))
    elif form == "quantized":
        x = quantize_reference.quantize(x, dice.choice(("fp8", "int8")))
    elif form == "normed":
        norm = dice.norm(batch, tokens, into)
    arguments = {
        "x": x,
        "norm": norm,
        "activation": dice.choice(("none", "gelu", "gelu_tanh", "quick_gelu", "silu")),
        "gate": dice.maybe(dice.rows, batch, tokens, out),
        "residual": dice.maybe(dice.tensor, batch, tokens, out),
        "out": dice.maybe(dice.buffer, batch, tokens, out),
    }
    if arguments["residual"] is not None and dice.random() < 0.3:
        arguments["out"] = arguments["residual"] = dice.laid(dice.number(batch, tokens, out), repeats=False)
    return Call("linear", arguments, weight, ROUNDED[precision])


def norm_modulate(dice):
    size = (dice.some(3), dice.some(40), dice.few(150))
    given = dataclasses.asdict(dice.norm(*size))
    given["norm"] = given.pop("kind")
    kind = dice.choice((None, None, "int8", "fp8"))
    x = dice.tensor(*size)
    out = dice.maybe(dice.buffer, *size) if kind is None else None
    return Call("norm_modulate", {"x": x, "quantize": kind, "out": out, **given}, close=_step(kind))


def quantize(dice):
    kind, size = dice.choice(("int8", "fp8")), [dice.some(6) for _ in range(dice.randint(0, 3))]
    return Call("quantize", {"x": dice.tensor(*size, dice.few(150)), "kind": kind}, close=_step(kind))


def _step(kind):
    return {None: 1e-5, "int8": 1.01 / 127, "fp8": 33 / 448}[kind]


def qk_norm_rope(dice):
    batch, tokens, heads, head_dim = dice.some(3), dice.some(30), dice.few(5), dice.few(40)
    rope = dice.maybe(dice.rope, batch, tokens, head_dim) if head_dim % 2 == 0 else None
    across = dice.random() < 0.5
    operands = dice.choice([n for n in range(1, heads + 1) if heads % n == 0])
    wanted = (heads if across else operands) * head_dim
    weight, bias = (dice.maybe(dice.number, wanted) for _ in range(2))
    norm = dice.maybe(HeadNorm, dice.choice(("rms", "layer")), 1e-5, weight, bias, across, operands, chance=0.8)
    x = dice.tensor(batch, tokens, heads * head_dim)
    out = dice.maybe(dice.buffer, batch, heads, tokens, head_dim, dense=2)
    arguments = {"x": x, "heads": heads, "norm": norm, "rope": rope, "out": out}
    if dice.random() < 0.3:
        arguments |= {"dtype": torch.bfloat16, "out": None if out is None else out.bfloat16()}
        return Call("qk_norm_rope", arguments, close=0.01)
    return Call("qk_norm_rope", arguments)


def scheduler_step(dice):
    batch, count, outputs = dice.some(3), dice.few(5), dice.few(3)
    size = (batch, *(dice.few(9) for _ in range(dice.randint(0, 4))))
    if dice.random() < 0.2:
        size = (batch, dice.randint(1000, 3000))
    factors = dice.number(batch, outputs, count)
    factors[:, :, dice.randrange(count)] *= dice.choice((0.0, 1.0))
    terms = [dice.laid(dice.number(*size), repeats=False) for _ in range(count)]
    for k, term in enumerate(terms):
        if batch and not bool(factors[:, :, k].any()):
            term.fill_(NAN)
    out = dice.maybe(lambda: [dice.buffer(*size, dense=len(size) - 1) for _ in range(outputs)])
    if out is not None and terms[0].is_contiguous():
        out[0] = terms[0]
    return Call("scheduler_step", {"terms": terms, "coefficients": factors, "out": out})


def _keys(dice, batch, heads, head_dim):
    slots = dice.some(90)
    k, v = (dice.tensor(batch, heads, slots, head_dim) for _ in range(2))
    lengths = dice.maybe(lambda: torch.tensor([dice.randint(0, slots) for _ in range(batch)], dtype=torch.int64))
    if lengths is not None:  # what lies behind them is not read
        k, v = k.clone(), v.clone()
        for b, length in enumerate(lengths.tolist()):
            k[b, :, length:], v[b, :, length:] = NAN, NAN
    return KV(k, v, lengths, dice.maybe(dice.rope, batch, slots, head_dim) if head_dim % 2 == 0 else None)


def _lists(dice, batch, heads, queries, keys):
    q_block, k_block = dice.choice((3, 8, 16)), dice.choice((4, 7, 16))
    tiles = -(-keys // k_block)
    most = dice.randint(0, tiles)
    size = (dice.choice((1, batch)), dice.choice((1, heads)), -(-queries // q_block))
    indices = torch.randint(-9, 10**6, (*size, most), dtype=torch.int32)  # what is not used may be anything
    counts = torch.zeros(size, dtype=torch.int32)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in size)).tolist():
        listed = dice.sample(range(tiles), dice.randint(0, most))
        counts[tuple(at)] = len(listed)
        indices[(*at, slice(len(listed)))] = torch.tensor(listed, dtype=torch.int32)
    return BlockList(q_block, k_block, indices, counts)


def attention(dice):
    batch, heads, head_dim = dice.some(3), dice.few(4), dice.few(70)
    q = tuple(dice.tensor(batch, heads, dice.some(70), head_dim) for _ in range(dice.choice((1, 1, 2))))
    kv = tuple(_keys(dice, batch, heads, head_dim) for _ in range(dice.randint(1, 3)))
    queries, keys = sum(t.shape[2] for t in q), sum(s.k.shape[2] for s in kv)
    bias = dice.maybe(
        dice.tensor, dice.choice((1, batch)), dice.choice((1, heads)), dice.choice((1, queries)), keys, dense=0
    )
    if bias is not None and dice.random() < 0.3:
        bias = bias.masked_fill(bias > 1, float("-inf"))
    kind = dice.choice((None, None, "int8"))
    arguments = {"q": q, "kv": kv, "scale": dice.maybe(dice.random), "bias": bias, "quantize": kind}
    sizes = [(batch, t.shape[2], heads * head_dim) for t in q]
    if len(q) == 1:
        block = dice.randint(1, 9)
        arguments |= {
            "causal": dice.maybe(BlockCausal, block, dice.randint(-20, 90)),
            "residual": dice.maybe(dice.tensor, *sizes[0]),
            "blocks": dice.maybe(_lists, dice, batch, heads, queries, keys),
        }
    if dice.random() < 0.4:
        arguments["out"] = tuple(dice.buffer(*size) for size in sizes)
    close = 1e-5 if kind is None else 0.03
    if dice.random() < 0.4:  # products of bf16, beside values in fp32
        arguments["q"] = tuple(t.bfloat16() for t in q)
        arguments["kv"] = tuple(dataclasses.replace(s, k=s.k.bfloat16()) for s in kv)
        close = 0.03
    return Call("attention", arguments, close=close)


def patch_embed(dice):
    patch, channels, features = tuple(dice.few(3) for _ in range(3)), dice.few(9), dice.few(70)
    size = [dice.some(5) * p for p in patch]
    batch, tokens = dice.some(3), size[0] * size[1] * size[2] // (patch[0] * patch[1] * patch[2])
    weight = {"weight": dice.number(features, channels, *patch), "bias": dice.maybe(dice.number, features)}
    arguments = {
        "x": dice.tensor(batch, channels, *size, dense=0),
        "position": dice.maybe(dice.tensor, *dice.choice(((), (batch,))), tokens, features),
        "out": dice.maybe(dice.buffer, batch, tokens, features),
    }
    return Call("patch_embed", arguments, weight)


def unpatchify(dice):
    grid, patch = tuple(dice.some(6) for _ in range(3)), tuple(dice.few(4) for _ in range(3))
    batch, channels = dice.some(3), dice.few(9)
    x = dice.tensor(batch, grid[0] * grid[1] * grid[2], channels * patch[0] * patch[1] * patch[2])
    out = dice.maybe(dice.buffer, batch, channels, *(g * p for g, p in zip(grid, patch, strict=True)), dense=5)
    order = dice.choice(("patch_first", "channel_first"))
    return Call("unpatchify", {"x": x, "grid": grid, "patch": patch, "order": order, "out": out})


def conv3d(dice):
    batch, into, out = dice.some(2), dice.few(20), dice.few(40)
    kernel, stride = tuple(dice.few(4) for _ in range(3)), tuple(dice.few(3) for _ in range(3))
    upsample = dice.choice((1, 1, 2, 3))
    if dice.random() < 0.5:  # what Winograd's transforms are for
        kernel, stride, into, out = (dice.few(3), 3, 3), (1, 1, 1), into + 7, out + 3
    padding = dice.maybe(lambda: tuple(dice.randint(0, 2) for _ in range(4)))
    frames = 0 if dice.random() < 0.04 else min(kernel[0], stride[0]) + dice.few(4) - 1
    # no smaller than a kernel, whatever the padding
    height, width = (dice.few(14) + k - 1 for k in kernel[1:])
    history = max(kernel[0] - stride[0], 0)
    top, bottom, left, right = padding or (*[(kernel[1] - 1) // 2] * 2, *[(kernel[2] - 1) // 2] * 2)
    seen = (history + frames, height * upsample + top + bottom, width * upsample + left + right)
    size = (batch, out, *((n - k) // s + 1 for n, k, s in zip(seen, kernel, stride, strict=True)))
    past = (batch, into, history, height * upsample, width * upsample)
    arguments = {
        "x": dice.tensor(batch, into, frames, height, width, dense=0),
        "norm": dice.maybe(dice.number, into),
        "activation": dice.choice(("none", "silu")),
        "upsample": upsample,
        "cache": dice.maybe(lambda: dice.laid(dice.number(*past) * dice.choice((0, 1)), 0, repeats=False)),
        "residual": dice.maybe(dice.tensor, *size, dense=0),
        "out": dice.maybe(dice.buffer, *size, dense=0),
    }
    weight = {"weight": dice.number(out, into, *kernel), "bias": dice.maybe(dice.number, out)}
    weight |= {"stride": stride, "padding": padding}
    return Call("conv3d", arguments, weight, backend=dice.choice(("cpu", "cpu-direct")))


DRAWN = (linear, norm_modulate, quantize, qk_norm_rope, scheduler_step, attention, patch_embed, unpatchify, conv3d)
OPS = {draw.__name__: draw for draw in DRAWN}
