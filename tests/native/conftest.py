"""A small call of every native op, enough of it for several tasks, and a packing of every kind."""

import ctypes
from functools import partial

import pytest
import torch

from kinema.ops.attention import KV
from kinema.ops.attention import cpu as attention
from kinema.ops.common import PRECISIONS, Target, native
from kinema.ops.conv3d import cpu as conv3d
from kinema.ops.linear import cpu as linear
from kinema.ops.norm_modulate import cpu as norm_modulate
from kinema.ops.patch_embed import cpu as patch_embed
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.qk_norm_rope import cpu as qk_norm_rope
from kinema.ops.quantize import cpu as quantize
from kinema.ops.scheduler_step import cpu as scheduler_step
from kinema.ops.unpatchify import cpu as unpatchify

TARGET = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def lend():
    """lend(True): calls run on torch's threads, of OpenMP, as a host may ask; lend(False): on the library's own."""
    cpu = native.cpu()
    parallel = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)

    def lent(whether):
        if whether and parallel is None:
            pytest.skip("torch has no threads of OpenMP here")
        cpu.library.kinema_cpu_use_threads(cpu.handle, ctypes.cast(parallel, ctypes.c_void_p) if whether else None)

    yield lent
    lent(False)


@pytest.fixture
def native_calls():
    """name: (the call, which takes `out` where there is one, and that)"""
    x, q = random(1, 733, 96), random(1, 3, 333, 32, seed=1)
    video, cache = random(1, 12, 3, 20, 70, seed=2), random(1, 12, 2, 20, 70, seed=3)

    def convolution(out, winograd):
        weight = conv3d._pack(random(out, 12, 3, 3, 3, seed=4), None, (1, 1, 1), (1, 1, 1, 1), winograd=winograd)
        norm = random(12, seed=5).abs()
        call = partial(conv3d.conv3d, video, weight, norm=norm, activation="silu", cache=cache.clone())
        return call, torch.empty(1, 3, 20, 70, out).movedim(-1, 1)

    packed = linear.pack_linear(random(130, 96, seed=6), target=TARGET)
    patches = patch_embed.pack_patch_embed(random(40, 12, 1, 2, 2, seed=7), target=TARGET)
    terms = [random(1, 9000, seed=8), random(1, 9000, seed=9)]
    step = partial(scheduler_step.scheduler_step, terms, torch.ones(1, 1, 2))
    return {
        "linear": (partial(linear.linear, x, packed), torch.empty(1, 733, 130)),
        "attention": (partial(attention.attention, q, KV(q, q)), torch.empty(1, 333, 96)),
        "attention in int8": (partial(attention.attention, q, KV(q, q), quantize="int8"), torch.empty(1, 333, 96)),
        "conv3d, few outputs": convolution(3, 0),
        "conv3d, direct": convolution(96, 0),
        "conv3d, in place": convolution(20, 0),
        "conv3d, F(2x2)": convolution(20, 2),
        "conv3d, F(4x4)": convolution(20, 4),
        "patch_embed": (partial(patch_embed.patch_embed, video, patches), torch.empty(1, 1050, 40)),
        "norm_modulate": (partial(norm_modulate.norm_modulate, x, eps=1e-6), torch.empty(1, 733, 96)),
        "quantize": (partial(quantize.quantize, x, "int8"), None),
        "qk_norm_rope": (
            partial(qk_norm_rope.qk_norm_rope, x, 3, norm=HeadNorm("rms", 1e-6)),
            torch.empty(1, 3, 733, 32),
        ),
        "unpatchify": (
            partial(unpatchify.unpatchify, random(1, 900, 96), (9, 10, 10), (1, 2, 2)),
            torch.empty(1, 24, 9, 20, 20),
        ),
        "scheduler_step": (lambda out: step(out=[out]), torch.empty(1, 9000)),
    }


@pytest.fixture
def native_packings():
    weight, kernel = random(130, 96), random(130, 12, 3, 3, 3)
    return {
        **{
            precision: partial(
                linear.pack_linear, weight, target=Target(torch.device("cpu"), PRECISIONS["cpu"][precision])
            )
            for precision in ("fp32", "bf16", "fp8", "int8")
        },
        "patch_embed": partial(patch_embed.pack_patch_embed, random(70, 12, 1, 2, 2), target=TARGET),
        "conv3d, direct": partial(conv3d.pack_direct, kernel, target=TARGET),
        "conv3d, F(2x2)": partial(conv3d._pack, kernel, None, (1, 1, 1), (1, 1, 1, 1), winograd=2),
        "conv3d, F(4x4)": partial(conv3d._pack, kernel, None, (1, 1, 1), (1, 1, 1, 1), winograd=4),
    }
