"""Arguments that do not fit each other are refused by every implementation of every op, before a kernel reads them.

Each case changes one thing of a call that fits. Natively most of them would be read, or written, behind the end of a
tensor: memory of somebody else, so that what comes out is a number like any other.
"""

from dataclasses import replace

import pytest
import torch

from kinema.ops.attention import KV, BlockCausal, BlockList
from kinema.ops.common import PRECISIONS, Quantized, Rope
from kinema.ops.common.launch import recording
from kinema.ops.common.native import Cpu
from kinema.ops.norm_modulate import Norm
from kinema.ops.plan import OPS as ALL
from kinema.ops.qk_norm_rope import HeadNorm

OPS = ALL
FP32, INT32 = torch.float32, torch.int32


# ---- calls that fit: {argument: value}, the op's function and its packing first


def linear(impl, draw):
    target = impl.target(PRECISIONS["cpu"]["fp32"])
    pack = {
        "weight": [draw.normal(4, 8), draw.normal(6, 8)],
        "bias": [draw.normal(4), draw.normal(6)],
        "gate_weight": draw.normal(10, 8),
        "gate_bias": draw.normal(10),
    }
    norm = Norm(1e-6, "layer", draw.normal(8), draw.normal(8), draw.normal(2, 3, 8), draw.normal(1, 6, 8))
    call = {
        "x": draw.normal(2, 6, 8),
        "norm": norm,
        "activation": "silu",
        "gate": draw.normal(2, 2, 10),
        "residual": draw.normal(2, 6, 10),
        "out": draw.poison(2, 6, 10),
    }

    def run(*, x, weight, bias, gate_weight, gate_bias, **options):
        packed = impl.functions.pack_linear(weight, bias, gate_weight=gate_weight, gate_bias=gate_bias, target=target)
        return impl.functions.linear(x, packed, **options)

    return run, {**pack, **call}


def norm_modulate(impl, draw):
    call = {
        "x": draw.normal(2, 6, 8),
        "norm": "layer",
        "eps": 1e-6,
        "weight": draw.normal(8),
        "bias": draw.normal(8),
        "scale": draw.normal(2, 3, 8),
        "shift": draw.normal(1, 6, 8),
        "quantize": None,
        "out": draw.poison(2, 6, 8),
    }
    return impl.functions.norm_modulate, call


def quantize(impl, draw):
    return impl.functions.quantize, {"x": draw.normal(2, 6, 8), "kind": "int8"}


def qk_norm_rope(impl, draw):
    call = {
        "x": draw.normal(2, 6, 8),
        "heads": 2,
        "norm": HeadNorm("rms", 1e-6, draw.normal(8), draw.normal(8), across_heads=True),
        "rope": Rope(draw.normal(2, 4, 2), draw.normal(2, 4, 2), start=2),
        "out": draw.poison(2, 2, 6, 4),
    }
    return impl.functions.qk_norm_rope, call


def attention(impl, draw):
    lists = torch.tensor([[[[0, 2], [1, 9]]]], dtype=INT32, device=draw.device)
    call = {
        "q": draw.normal(3, 3, 7, 16),
        "kv": KV(
            draw.normal(3, 3, 12, 16),
            draw.normal(3, 3, 12, 16),
            torch.tensor([12, 5, 9], device=draw.device),
            Rope(draw.normal(9, 8), draw.normal(9, 8), start=3),
        ),
        "bias": draw.normal(3, 3, 7, 12),
        "causal": BlockCausal(2, 1),
        "blocks": BlockList(4, 5, lists, torch.tensor([[[2, 1]]], dtype=INT32, device=draw.device)),
        "residual": draw.normal(3, 7, 48),
        "out": draw.poison(3, 7, 48),
    }
    return impl.functions.attention, call


def joint(impl, draw):
    keys = tuple(KV(draw.normal(2, 3, n, 16), draw.normal(2, 3, n, 16)) for n in (7, 4, 5))
    queries = draw.normal(2, 3, 7, 16), draw.normal(2, 3, 4, 16)
    call = {"q": queries, "kv": keys, "bias": draw.normal(1, 1, 11, 16)}
    call["out"] = draw.poison(2, 7, 48), draw.poison(2, 4, 48)
    return impl.functions.attention, call


def patch_embed(impl, draw):
    target = impl.target(PRECISIONS["cpu"]["fp32"])
    call = {
        "x": draw.normal(2, 4, 2, 4, 6),
        "weight": draw.normal(10, 4, 1, 2, 2),
        "bias": draw.normal(10),
        "position": draw.normal(2, 12, 10),
        "out": draw.poison(2, 12, 10),
    }

    def run(*, x, weight, bias, **options):
        return impl.functions.patch_embed(x, impl.functions.pack_patch_embed(weight, bias, target=target), **options)

    return run, call


def unpatchify(impl, draw):
    call = {
        "x": draw.normal(2, 12, 24),
        "grid": (2, 2, 3),
        "patch": (1, 2, 2),
        "order": "patch_first",
        "out": draw.poison(2, 6, 2, 4, 6),
    }
    return impl.functions.unpatchify, call


def conv3d(impl, draw):
    target = impl.target(PRECISIONS["cpu"]["fp32"])
    call = {
        "x": draw.normal(2, 8, 3, 5, 6),
        "weight": draw.normal(10, 8, 3, 3, 3),
        "bias": draw.normal(10),
        "stride": (1, 1, 1),
        "padding": (1, 1, 1, 1),
        "norm": draw.normal(8),
        "activation": "silu",
        "upsample": 2,
        "cache": draw.normal(2, 8, 2, 10, 12),
        "residual": draw.normal(2, 10, 3, 10, 12),
        "out": draw.poison(2, 10, 3, 10, 12),
    }

    def run(*, x, weight, bias, stride, padding, **options):
        pack = impl.functions.pack_conv3d
        return impl.functions.conv3d(x, pack(weight, bias, stride=stride, padding=padding, target=target), **options)

    return run, call


def scheduler_step(impl, draw):
    call = {
        "terms": [draw.normal(2, 4, 6) for _ in range(3)],
        "coefficients": draw.uniform(2, 2, 3),
        "out": [draw.poison(2, 4, 6) for _ in range(2)],
    }
    return impl.functions.scheduler_step, call


CALLS = {
    "linear": (linear,),
    "norm_modulate": (norm_modulate,),
    "quantize": (quantize,),
    "qk_norm_rope": (qk_norm_rope,),
    "attention": (attention, joint),
    "patch_embed": (patch_embed,),
    "unpatchify": (unpatchify,),
    "conv3d": (conv3d,),
    "scheduler_step": (scheduler_step,),
}


# ---- what is changed


def to(dtype):
    return lambda t: t.to(dtype)


def elsewhere(t):
    return t.to("meta")


def less(axis):
    return lambda t: t.narrow(axis, 0, t.shape[axis] - 1).clone()


def more(axis):
    return lambda t: torch.cat((t, t.narrow(axis, 0, 1)), axis)


def only(axis):
    """One of many."""
    return lambda t: t.narrow(axis, 0, 1).clone()


def no(axis):
    return lambda t: t.narrow(axis, 0, 0).clone()


def across(t):
    """The values of the last axis are no neighbours in memory."""
    return t.mT.contiguous().mT


def folded(t):
    """All samples in one place."""
    return t[:1].expand_as(t)


def flat(t):
    return t[0]


def part(index, change):
    """Of a list or a tuple."""
    return lambda parts: type(parts)(change(p) if i == index else p for i, p in enumerate(parts))


def inside(field, change):
    """Of a record; "rope.cos": of one in it."""
    name, _, rest = field.partition(".")
    return lambda record: replace(record, **{name: (inside(rest, change) if rest else change)(getattr(record, name))})


def shifted(name, first):
    """out begins within the memory of another argument."""

    def change(call):
        source, out = call[name], call["out"]
        memory = torch.cat((source.flatten(), source.new_zeros(out.numel())))
        call[name] = memory[: source.numel()].view(source.shape)
        call["out"] = memory[first : first + out.numel()].view(out.shape)
        return call

    return change


def given(**arguments):
    return lambda call: {**call, **arguments}


def changed(*names, by):
    def change(call):
        return {**call, **{name: by(call[name]) for name in names}}

    return change


def tensor(name, *wrong):
    """The mistakes that any tensor may have: {label: change}."""
    return {f"{name} {label}": changed(name, by=by) for label, by in wrong}


WRONG_PLACE = (("of integers", to(torch.int64)), ("on another device", elsewhere))


def axes(*numbers):
    return tuple((f"with one {what.__name__} in axis {n}", what(n)) for n in numbers for what in (less, more))


def quantized(**wrong):
    """x as data with a scale, to be changed; and nothing that does not go with it."""

    def change(call):
        x = call["x"]
        parts = {"data": x.round().to(torch.int8), "scale": torch.full_like(x[..., :1], 0.02)}
        parts.update({name: by(parts[name]) for name, by in wrong.items()})
        return {**call, "x": Quantized(**parts), "norm": None}

    return change


def pair(first=lambda t: t, second=lambda t: t, **options):
    def change(call):
        halves = call["x"][..., :3].contiguous(), call["x"][..., 3:].contiguous()
        return {**call, "norm": None, "x": (first(halves[0]), second(halves[1])), **options}

    return change


MODULATION = (*axes(2), *WRONG_PLACE, ("of one channel", only(2)), ("of no groups", no(1)), ("of two axes", flat))
VECTOR = (*axes(0), *WRONG_PLACE, ("of one channel", only(0)))
OUT = (("in one place", folded), ("in fp64", to(torch.float64)), ("on another device", elsewhere))


def norm_fields(prefix, wrap):
    """The mistakes of weight, bias, scale and shift."""
    wrong = {}
    for name in ("weight", "bias"):
        wrong.update({f"{prefix}{name} {label}": wrap(name, by) for label, by in VECTOR})
    for name in ("scale", "shift"):
        wrong.update({f"{prefix}{name} {label}": wrap(name, by) for label, by in MODULATION})
        wrong[f"{prefix}{name} of 4 groups for 6 tokens"] = wrap(name, lambda t: torch.cat((t, t), 1)[:, :4])
        wrong[f"{prefix}{name} of three samples"] = wrap(name, lambda t: torch.cat((t, t, t))[:3])
    return wrong


MISFITS = {
    "linear": {
        **tensor("x", *axes(2), *WRONG_PLACE, ("of two axes", flat), ("across", across), ("in int8", to(torch.int8))),
        **norm_fields("the norm's ", lambda name, by: changed("norm", by=inside(name, by))),
        "norm of another kind": changed("norm", by=lambda n: replace(n, kind="group")),
        **tensor("gate", *MODULATION, ("of 4 groups", lambda t: torch.cat((t, t), 1))),
        "gate of three samples": changed("gate", by=lambda t: torch.cat((t, t))[:3]),
        **tensor("residual", *axes(0, 1, 2), *WRONG_PLACE, ("of one token", only(1)), ("across", across)),
        **tensor("out", *axes(0, 1, 2), *OUT),
        "out over x": shifted("x", 8),
        "out over residual, a token later": shifted("residual", 10),
        "activation that is none": given(activation="relu"),
        "a bias of one row less": changed("bias", by=part(1, less(0))),
        "a bias of one row more": changed("bias", by=part(0, more(0))),
        "a bias of two axes": changed("bias", by=part(0, lambda t: t[None])),
        "a bias of integers": changed("bias", by=part(0, to(torch.int64))),
        "biases of some": changed("bias", by=lambda parts: parts[:1]),
        "no weights": changed("weight", "bias", by=lambda parts: []),
        "weights of unlike inputs": changed("weight", by=part(1, less(1))),
        "a weight without rows": changed("weight", by=part(1, no(0))),
        "a weight of one axis": changed("weight", by=part(1, flat)),
        "a weight of integers": changed("weight", by=part(1, to(torch.int8))),
        **tensor("gate_weight", *axes(0, 1), ("of integers", to(torch.int8))),
        **tensor("gate_bias", *axes(0), ("of one row", only(0)), ("of integers", to(torch.int8))),
        "gate_bias without a gate_weight": given(gate_weight=None),
        "gate_bias missing": given(gate_bias=None),
        "bias missing": given(bias=None),
        "a pair of unlike tokens": pair(second=less(1)),
        "a pair of 6 and 1 tokens": pair(second=only(1)),
        "a pair of unlike samples": pair(second=only(0)),
        "a pair of unlike dtypes": pair(second=to(torch.float64)),
        "a pair of two devices": pair(second=elsewhere),
        "a pair with a feature too many": pair(second=more(2)),
        "a pair whose half lies across": pair(second=across),
        "a pair of three": changed("x", by=lambda x: (x[..., :2].contiguous(), x[..., 2:4].contiguous(), x[..., 4:])),
        "a pair with a norm": lambda call: {**pair()(call), "norm": call["norm"]},
        "a quantised x with a norm": lambda call: {**quantized()(call), "norm": call["norm"]},
        "scales of one token less": quantized(scale=less(1)),
        "one scale": quantized(scale=lambda t: t[:1, :1]),
        "scales of two axes": quantized(scale=lambda t: t[..., 0]),
        "scales in fp64": quantized(scale=to(torch.float64)),
        "scales on another device": quantized(scale=elsewhere),
        "quantised data in int32": quantized(data=to(INT32)),
        "quantised data of too few features": quantized(data=less(2)),
        "quantised data across": quantized(data=across),
    },
    "norm_modulate": {
        **tensor("x", *axes(0, 1, 2), *WRONG_PLACE, ("of two axes", flat), ("across", across)),
        "x of no channel": changed("x", by=no(2)),
        **norm_fields("", lambda name, by: changed(name, by=by)),
        "norm of another kind": given(norm="group"),
        "quantize to another kind": given(quantize="int4", out=None),
        "quantize with out": given(quantize="int8"),
        **tensor("out", *axes(0, 1, 2), *OUT),
        "out over x, a token later": shifted("x", 8),
        "out over scale": shifted("scale", 0),
    },
    "quantize": {
        **tensor("x", ("of integers", to(torch.int64)), ("across", across), ("of no channel", no(2))),
        "a kind that is none": given(kind="int4"),
        "x of no axis": given(x=torch.tensor(1.0)),
    },
    "qk_norm_rope": {
        **tensor("x", *axes(0, 1, 2), *WRONG_PLACE, ("of two axes", flat), ("across", across)),
        **{f"{n} heads": given(heads=n) for n in (0, -2, 3, 16)},
        **{
            f"the norm's {name} {label}": changed("norm", by=inside(name, by))
            for name in ("weight", "bias")
            for label, by in (*VECTOR, ("of a head", lambda t: t[:4]))
        },
        "the norm of a head of all channels": changed("norm", by=lambda n: replace(n, across_heads=False)),
        **{
            f"a norm of {n} operands": changed("norm", by=lambda norm, n=n: replace(norm, operands=n))
            for n in (0, -2, 3, 4)
        },
        "norm of another kind": changed("norm", by=lambda n: replace(n, kind="group")),
        **{
            f"{'cosines' if name == 'cos' else 'sines'} {label}": changed("rope", by=inside(name, by))
            for name in ("cos", "sin")
            for label, by in (*axes(0, 1, 2), *WRONG_PLACE, ("of one token", only(1)), ("of one sample", flat))
        },
        "both tables of too many pairs": changed("rope", by=lambda r: Rope(more(2)(r.cos), more(2)(r.sin), start=2)),
        "both tables of too many tokens": changed("rope", by=lambda r: Rope(more(1)(r.cos), more(1)(r.sin), start=2)),
        "both tables of three samples": changed("rope", by=lambda r: Rope(more(0)(r.cos), more(0)(r.sin), start=2)),
        "a rotation that ends too late": changed("rope", by=lambda r: replace(r, start=3)),
        "a rotation from before the first token": changed("rope", by=lambda r: replace(r, start=-1)),
        **tensor("out", *axes(0, 1, 2, 3), *OUT, ("with tokens apart", lambda t: t.transpose(1, 2).contiguous())),
        "out over x": shifted("x", 0),
    },
    "attention": {
        **tensor("q", *axes(0, 1, 3), *WRONG_PLACE, ("of three axes", flat), ("across", across)),
        **{
            f"{name} {label}": changed("kv", by=inside(name, by))
            for name in ("k", "v")
            for label, by in (
                *axes(0, 1, 2, 3), *WRONG_PLACE, ("of three axes", flat), ("across", across),
                ("of three slots", lambda t: t[:, :, :3].contiguous()), ("in fp64", to(torch.float64)),
            )
        },
        "lengths of one sample": changed("kv", by=inside("lengths", only(0))),
        "lengths of a sample more": changed("kv", by=inside("lengths", more(0))),
        "lengths of two axes": changed("kv", by=inside("lengths", lambda t: t[None])),
        "lengths as floats": changed("kv", by=inside("lengths", to(FP32))),
        "lengths beyond the slots": changed("kv", by=inside("lengths", lambda t: t + 1)),
        "lengths below 0": changed("kv", by=inside("lengths", lambda t: t - 6)),
        **{
            f"{'cosines' if name == 'cos' else 'sines'} {label}": changed("kv", by=inside(f"rope.{name}", by))
            for name in ("cos", "sin")
            for label, by in (*axes(0, 1), *WRONG_PLACE, ("of three tokens", lambda t: t[:3]))
        },
        "a rotation of two samples": changed(
            "kv", by=inside("rope", lambda r: Rope(r.cos.expand(2, -1, -1), r.sin.expand(2, -1, -1)))
        ),
        "a rotation that ends too late": changed("kv", by=inside("rope", lambda r: replace(r, start=4))),
        "a rotation from before the first key": changed("kv", by=inside("rope", lambda r: replace(r, start=-1))),
        **tensor(
            "bias", *axes(0, 1, 2, 3), *WRONG_PLACE, ("of two axes", lambda t: t[0, 0]),
            ("of a boolean mask", to(torch.bool)), ("of one key", only(3)),
        ),
        "causal blocks of no tokens": given(causal=BlockCausal(0)),
        "causal blocks of less than that": given(causal=BlockCausal(-4)),
        **{
            f"the list of tiles {label}": changed("blocks", by=inside("indices", by))
            for label, by in (
                *axes(2), ("of two samples too many", lambda t: t.expand(4, -1, -1, -1).contiguous()),
                ("of two heads", lambda t: t.expand(-1, 2, -1, -1).contiguous()), ("as floats", to(FP32)),
                ("of three axes", flat), ("with a tile behind the keys", lambda t: t + 1),
                ("with a tile before the keys", lambda t: t - 1), ("without the tiles that are counted", less(3)),
            )
        },
        **{
            f"the counts of tiles {label}": changed("blocks", by=inside("counts", by))
            for label, by in (
                *axes(2), ("of three thousand", lambda t: t + 3000), ("below 0", lambda t: t - 2),
                ("of two heads", lambda t: t.expand(-1, 2, -1).contiguous()), ("as floats", to(FP32)),
                ("of two axes", flat),
            )
        },
        "tiles of no queries": changed("blocks", by=lambda b: replace(b, q_block=0)),
        "tiles of no keys": changed("blocks", by=lambda b: replace(b, k_block=0)),
        "tiles of other queries": changed("blocks", by=lambda b: replace(b, q_block=3)),
        "tiles of too many keys": changed("blocks", by=lambda b: replace(b, k_block=6)),
        **tensor("residual", *axes(0, 1, 2), *WRONG_PLACE, ("of one token", only(1)), ("across", across)),
        "quantize to another kind": given(quantize="int4"),
        **tensor("out", *axes(0, 1, 2), *OUT),
        "out over q": shifted("q", 16),
        "out over residual, a token later": shifted("residual", 48),
        "two buffers for one result": changed("out", by=lambda t: (t, t.clone())),
        "no queries": given(q=()),
        "no keys": given(kv=()),
        "four segments of keys": changed("kv", by=lambda kv: (kv, kv, kv, kv)),
    },
    "joint": {
        "queries of unlike heads": changed("q", by=part(1, less(1))),
        "queries of unlike samples": changed("q", by=part(1, only(0))),
        "queries of unlike dtypes": changed("q", by=part(1, to(torch.float64))),
        "three segments of queries": changed("q", by=lambda q: (*q, q[1])),
        "keys of unlike channels": changed("kv", by=part(2, lambda s: KV(less(3)(s.k), less(3)(s.v)))),
        "values of fewer slots": changed("kv", by=part(1, inside("v", less(2)))),
        "a bias of the first queries": changed("bias", by=lambda t: t[:, :, :7].contiguous()),
        "a bias of the first keys": changed("bias", by=lambda t: t[..., :7].contiguous()),
        "causal of two segments": given(causal=BlockCausal(2)),
        "blocks of two segments": given(blocks=BlockList(4, 4, torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2))),
        "residual of two segments": given(residual=torch.zeros(2, 11, 48)),
        "one buffer for two results": changed("out", by=lambda out: out[0]),
        "one buffer twice": changed("out", by=lambda out: (out[0], out[0][:, :4])),
        "buffers the wrong way round": changed("out", by=lambda out: out[::-1]),
    },
    "patch_embed": {
        **tensor("x", *axes(1, 3, 4), *WRONG_PLACE, ("of four axes", flat)),
        **tensor("bias", *axes(0), ("of one feature", only(0)), ("of integers", to(torch.int64))),
        "a bias of two axes": changed("bias", by=lambda t: t[None]),
        "a weight of four axes": changed("weight", by=lambda t: t[:, :, 0]),
        "a weight of no channel": changed("weight", by=no(1)),
        "a weight of integers": changed("weight", by=to(torch.int64)),
        **tensor("position", *axes(0, 1, 2), *WRONG_PLACE, ("of one sample", only(0)), ("of one token", only(1))),
        "a position of too few tokens": changed("position", by=lambda t: t[0, :5].contiguous()),
        "a position of four axes": changed("position", by=lambda t: t[None]),
        **tensor("out", *axes(0, 1, 2), *OUT),
        "out over x": shifted("x", 16),
        "out over position": shifted("position", 0),
    },
    "unpatchify": {
        **tensor("x", *axes(1, 2), ("of integers", to(torch.int64)), ("of two axes", flat)),
        "a grid of more tokens": given(grid=(2, 3, 3)),
        "a grid of two minuses": given(grid=(2, -2, -3)),
        "a patch that does not divide": given(patch=(1, 2, 5)),
        "a patch of nothing": given(patch=(1, 0, 2)),
        "a patch of two minuses": given(patch=(1, -2, -2)),
        "an order that is none": given(order="last"),
        **tensor("out", *axes(0, 1, 2, 3, 4), *OUT),
        "out over x": shifted("x", 8),
    },
    "conv3d": {
        **tensor("x", *axes(1), *WRONG_PLACE, ("of four axes", flat), ("of other frames", no(3)), ("of none", no(4))),
        **tensor("bias", *axes(0), ("of one channel", only(0)), ("of integers", to(torch.int64))),
        "a weight of three axes": changed("weight", by=lambda t: t[0, 0]),
        "a weight of no channel": changed("weight", by=no(0)),
        "a weight of integers": changed("weight", by=to(torch.int64)),
        "strides of 0": given(stride=(1, 0, 1)),
        "strides of two axes": given(stride=(1, 1)),
        "padding below 0": given(padding=(-1, 1, 1, 1)),
        "padding of two sides": given(padding=(1, 1)),
        "a kernel larger than the picture": changed("weight", by=lambda t: t.repeat(1, 1, 1, 5, 1)),
        **tensor("norm", *VECTOR),
        "activation that is none": given(activation="relu"),
        "upsampling by 0": given(upsample=0),
        "upsampling by −1": given(upsample=-1),
        "upsampling by 1": given(upsample=1),
        **tensor("cache", *axes(0, 1, 2, 3, 4), *WRONG_PLACE, ("in one place", folded), ("of four axes", flat)),
        "a cache that is x": lambda call: {
            **call, "upsample": 1, "residual": None, "out": None, "cache": call["x"][:, :, :2],
        },
        **tensor("residual", *axes(0, 1, 2, 3, 4), *WRONG_PLACE, ("of one frame", only(2))),
        **tensor("out", *axes(0, 1, 2, 3, 4), *OUT),
        "out over x": shifted("x", 30),
        "out over the cache": shifted("cache", 0),
        "out over residual, a row later": shifted("residual", 12),
    },
    "scheduler_step": {
        "no terms": given(terms=[]),
        "a term less": changed("terms", by=lambda t: t[:2]),
        "a term more": changed("terms", by=lambda t: [*t, t[0]]),
        **{f"a term {label}": changed("terms", by=part(1, by)) for label, by in (*axes(0, 1, 2), *WRONG_PLACE)},
        "a term of two axes": changed("terms", by=part(1, flat)),
        **tensor("coefficients", *axes(0, 2), ("of integers", to(torch.int64)), ("of two axes", flat)),
        "a buffer less": changed("out", by=lambda out: out[:1]),
        "a buffer more": changed("out", by=lambda out: [*out, out[0].clone()]),
        **{f"a buffer {label}": changed("out", by=part(1, by)) for label, by in (*axes(0, 1, 2), *OUT)},
        "one buffer twice": changed("out", by=lambda out: [out[0], out[0]]),
        "buffers that overlap": changed(
            "out", by=lambda out: list(torch.zeros(3, 4, 6).unfold(0, 2, 1).permute(0, 3, 1, 2).unbind())
        ),
        "a buffer over a term, a value later": lambda call: {
            **call,
            "terms": [(memory := torch.zeros(49))[:48].view(2, 4, 6), *call["terms"][1:]],
            "out": [memory[1:].view(2, 4, 6), call["out"][1]],
        },
    },
}  # fmt: skip


def copied(value):
    """A call or a value of one, so that one case leaves nothing to the next; records share what they hold."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: copied(one) for name, one in value.items()}
    return type(value)(map(copied, value)) if isinstance(value, (list, tuple)) else value


@pytest.fixture
def unreached(monkeypatch):
    """No native kernel is called; and within `recording`, no Triton kernel either."""

    def reach(self, name, arguments):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(Cpu, "ask", reach)
    monkeypatch.setattr(Cpu, "call", reach)


def calls_of(impl):
    return [(made.__name__, *made(impl, impl.draw())) for made in CALLS[impl.op]]


def test_the_calls_fit(impl):
    """What is changed below is the only thing that is wrong."""
    with recording(90):  # interpreted kernels are slow, and what they compute is not asked
        for name, run, call in calls_of(impl):
            changes = (given(), pair(), quantized()) if name == "linear" else (given(),)
            for change in changes:
                run(**change(copied(call)))


def test_misfits_are_refused_before_a_kernel_sees_them(impl, unreached):
    accepted = {}
    for name, run, call in calls_of(impl):
        for label, change in MISFITS[name].items():
            with recording(90) as kept:
                try:
                    wrong = change(copied(call))
                    run(**wrong)
                    accepted[label] = "ran"
                except ValueError as error:
                    if len(str(error)) < 20 or kept.launches:
                        accepted[label] = f"{len(kept.launches)} launches, then: {error}"
                except Exception as error:
                    accepted[label] = repr(error)[:200]
    assert not accepted, "\n".join(f"{label}: {said}" for label, said in accepted.items())
