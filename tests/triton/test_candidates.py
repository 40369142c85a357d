"""Every candidate that a GPU may be tuned to gives right results: interpreted, on shapes that no tile divides."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.attention import KV, BlockCausal
from kinema.ops.attention import reference as attention_reference
from kinema.ops.attention.triton import attention
from kinema.ops.common import PRECISIONS, Target
from kinema.ops.common.launch import architecture, forced, recording, watching
from kinema.ops.conv3d import reference as conv3d_reference
from kinema.ops.conv3d.triton import conv3d, pack_conv3d
from kinema.ops.linear import reference as linear_reference
from kinema.ops.linear.triton import linear, pack_linear
from kinema.ops.tables import tables, tunable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
ARCHITECTURES = (80, 89, 90, 100, 120)
ITEMSIZE = {"fp32": 4, "fp8": 1, "int8": 1}
PRECISION = {"": "bf16", "_fp32": "fp32", "_fp8": "fp8", "_int8": "int8"}


def distinct(op):
    """(table, candidate) of an op on this GPU; in the interpreter on any, once of those that differ as programs do."""
    found = {}
    for arch in (architecture(DEVICE),) if ON_GPU else ARCHITECTURES:
        for name, configs in tunable(arch).items():
            if name.partition("/")[0] == op:
                for config in configs:
                    label = f"{name} {config}" if ON_GPU else program(name, config)
                    found.setdefault(label, (name, config))
    return [pytest.param(*case, id=label) for label, case in found.items()]


def program(name, config):
    """What the interpreter knows of a candidate: not its warps, stages and grid; the same features are one tile."""
    blocks = {key: size for key, size in config.blocks.items() if key != "PER_SM"}
    if "BYTES" in blocks:
        blocks["FEATURES"] = blocks.pop("BYTES") // ITEMSIZE.get(name.rpartition("_")[2], 2)
        name = "linear"
    return " ".join([name, *(f"{key}{size}" for key, size in blocks.items())])


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_close(got, wanted, tolerance):
    assert got.shape == wanted.shape
    assert float((got.float() - wanted.float()).abs().max()) <= tolerance * float(wanted.float().abs().max())


def test_a_table_with_a_choice_has_two_to_four_that_differ():
    entries = [entry for table in tables().values() for entry in table.values() if isinstance(entry, tuple)]
    assert len(entries) > 10
    for entry in entries:
        assert 2 <= len({str(config) for config in entry}) == len(entry) <= 4
        assert len({tuple(config.blocks) for config in entry}) == 1, "of the same blocks"


def test_no_default_of_the_interpreter_has_a_choice():
    assert tunable(0) == {}


@pytest.mark.parametrize(("name", "config"), distinct("linear"))
def test_linear(name, config):
    """70 rows and 150 columns of 72 features: more than one turn of some loops, less than one of others."""
    precision = PRECISIONS["cuda"][PRECISION[name.removeprefix("linear/large")]]
    target = Target(DEVICE, precision)
    x, weight, bias = drawn(1, 70, 72, dtype=precision.activations), drawn(150, 72, seed=1), drawn(150, seed=2)
    options = {"activation": "silu", "residual": drawn(1, 70, 150, dtype=precision.activations, seed=3)}
    gates = {"gate_weight": drawn(150, 72, seed=4), "gate_bias": drawn(150, seed=5)}
    for gate in ({}, gates) if name == "linear/large" else ({},):
        packs = [pack(weight, bias, target=target, **gate) for pack in (pack_linear, linear_reference.pack_linear)]
        with forced({name: config}):
            got = linear(x, packs[0], **options)
        assert_close(got, linear_reference.linear(x, packs[1], **options), 1e-5 if precision.name == "fp32" else 2e-2)


@pytest.mark.parametrize("causal", [None, BlockCausal(70)], ids=["full", "causal"])
@pytest.mark.parametrize(("name", "config"), distinct("attention"))
def test_attention(name, config, causal):
    """150 queries see 139 keys, or 70 and 139 of them."""
    head_dim, _, kind = name.removeprefix("attention/").partition("_")
    head_dim, quantize = int(head_dim), kind or None
    q = drawn(1, 1, 150, head_dim, dtype=torch.bfloat16)
    kv = KV(*(drawn(1, 1, 139, head_dim, dtype=torch.bfloat16, seed=seed) for seed in (1, 2)))
    with forced({name: config, f"{name}_lean": config}):
        (got,) = attention(q, kv, causal=causal, quantize=quantize)
    (wanted,) = attention_reference.attention(q, kv, causal=causal, quantize=quantize)
    assert_close(got, wanted, 5e-2 if quantize else 2e-2)  # e4m3's weights are rounded behind a tile's largest logit


@pytest.mark.parametrize(("name", "config"), distinct("conv3d"))
def test_conv3d(name, config):
    """126 positions of 23 channels in, 9 out."""
    target = Target(DEVICE, PRECISIONS["cuda"]["fp32"])
    x, weight = drawn(1, 23, 2, 9, 7), 0.05 * drawn(9, 23, 1, 3, 3, seed=1)
    with forced({name: config}):
        got = conv3d(x, pack_conv3d(weight, target=target))
    assert_close(got, conv3d_reference.conv3d(x, conv3d_reference.pack_conv3d(weight, target=target)), 1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_candidate_reaches_its_kernel(arch):
    """No size of a table is lost on the way: two candidates are two launches that differ."""
    meta = torch.device("meta")
    bf16, fp32 = (PRECISIONS["cuda"][name] for name in ("bf16", "fp32"))
    weight = pack_linear(torch.empty(512, 512, device=meta), target=Target(meta, bf16))
    q = torch.empty(1, 24, 4096, 128, dtype=torch.bfloat16, device=meta)
    conv = pack_conv3d(torch.empty(96, 96, 3, 3, 3, device=meta), target=Target(meta, fp32))
    calls = {
        "linear/large": lambda: linear(torch.empty(1, 4096, 512, dtype=torch.bfloat16, device=meta), weight),
        "attention/128": lambda: attention(q, KV(q, q)),
        "conv3d/fp32": lambda: conv3d(torch.empty(1, 96, 4, 64, 64, device=meta), conv),
    }
    for name, call in calls.items():
        candidates = tunable(arch)[name]
        seen = set()
        for config in candidates:
            with recording(arch) as kept, forced({name: config}):
                call()
            (launch,) = kept.launches
            seen.add((str(launch.config), launch.grid))
        assert len(seen) == len(candidates), name


def test_calls_that_fill_a_gpu_are_of_one_kind():
    """So that what was tuned with one row of a batch holds for guidance's two, and for a longer clip."""
    meta = torch.device("meta")
    bf16 = Target(meta, PRECISIONS["cuda"]["bf16"])
    weight = pack_linear(torch.empty(512, 512, device=meta), target=bf16)
    conv = pack_conv3d(torch.empty(96, 96, 3, 3, 3, device=meta), target=bf16)

    def kinds(batch, tokens):
        x = torch.empty(batch, tokens, 512, dtype=torch.bfloat16, device=meta)
        q = torch.empty(batch, 12, tokens, 128, dtype=torch.bfloat16, device=meta)
        with recording(90), watching() as visits:
            linear(x, weight)
            attention(q, KV(q, q))
            conv3d(torch.empty(batch, 96, 4, 64, tokens // 64, device=meta), conv)
        assert [v.table for v in visits] == ["linear/large", "attention/128", "conv3d/fp32"]
        return {v.key for v in visits}

    assert kinds(1, 32768) == kinds(2, 32768) == kinds(1, 75648)
    few, more = kinds(1, 4096), kinds(2, 4096)
    assert not few & more and not more & kinds(2, 32768)
