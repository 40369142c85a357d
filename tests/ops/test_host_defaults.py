"""An op gives the same bits whatever dtype and device the host application has made torch's default."""

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from kinema.ops import build_ops, plan_ops
from kinema.ops.common import PRECISIONS, Quantized, Target
from kinema.ops.common.launch import recording
from kinema.ops.plan import OPS as ALL

OPS = ALL
DEFAULTS = ("bfloat16", "float16", "float64", "meta")


def neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


misfits = neighbour("test_misfits")


def tensors_of(value):
    if isinstance(value, Quantized):
        return [value.data, value.scale]
    return list(value) if isinstance(value, tuple) else [value]


def without_buffers(impl):
    """Each call that fits, made to allocate its result, and again with what it has other options for."""
    for name, run, call in misfits.calls_of(impl):
        call = {**call, "out": None} if "out" in call else call
        yield run, call
        if name == "norm_modulate":
            yield run, {**call, "quantize": "int8"}
        if name == "linear":
            yield run, misfits.pair()(call)
            yield run, misfits.quantized()(call)
        if name == "attention":
            yield run, {**call, "quantize": "fp8" if impl.backend == "triton" else "int8"}


@pytest.mark.parametrize("default", DEFAULTS)
def test_an_op_gives_the_same_bits(impl, default, hosts_default):
    """Of Triton's the same launches: interpreted kernels are slow, and know no defaults."""
    recorded = impl.backend == "triton"
    for run, call in without_buffers(impl):
        with recording(90) if recorded else nullcontext() as usual:
            wanted = tensors_of(run(**misfits.copied(call)))
        with hosts_default(default), recording(90) if recorded else nullcontext() as kept:
            got = tensors_of(run(**misfits.copied(call)))
        if recorded:
            got += [t for launch in kept.launches for t in launch.arguments.values() if isinstance(t, torch.Tensor)]
            wanted += [t for launch in usual.launches for t in launch.arguments.values() if isinstance(t, torch.Tensor)]
        for ours, before in zip(got, wanted, strict=True):
            assert (ours.dtype, ours.device, ours.shape) == (before.dtype, before.device, before.shape)
            assert recorded or torch.equal(bits(ours), bits(before))


def bits(t):
    return t.contiguous().view(torch.uint8)


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_weights_are_packed_to_the_same_bits(precision, default, hosts_default):
    ops = build_ops(plan_ops(Target(torch.device("cpu"), PRECISIONS["cpu"][precision])))
    weight = torch.linspace(-1, 1, 40 * 24, dtype=torch.float32, device="cpu").view(40, 24)
    x, bias = weight[:6, :].reshape(1, 6, 24), weight[:, 0].contiguous()
    wanted = ops.linear(x, ops.pack_linear(weight, bias))
    with hosts_default(default):
        assert torch.equal(ops.linear(x, ops.pack_linear(weight, bias)), wanted)
