"""The plain PyTorch twin computes what kinema's reference does, from the same weights."""

from dataclasses import replace

import pytest
import torch

from kinema.bench import gate
from kinema.bench.gpu_session.drawn import Drawn, drawn_weights
from kinema.bench.gpu_session.wan_forward import SMALL
from kinema.bench.gpu_session.wan_twin import WanTwin
from kinema.families.wan.config import tensor_shapes
from kinema.families.wan.transformer import WanTransformer
from kinema.ops import build_ops, plan_ops
from kinema.ops.common import PRECISIONS, Precision, Target

CPU = torch.device("cpu")
EXACT = Precision("float64", torch.float64, torch.float64)
CONFIG = replace(SMALL, num_attention_heads=3, attention_head_dim=12, ffn_dim=40, num_layers=2, text_dim=10)


def given(config, batch=2):
    new = Drawn(CPU)
    return new(batch, config.in_channels, 3, 4, 6), torch.tensor([500.0, 31.0])[:batch], new(batch, 5, config.text_dim)


def kinema(config, weights, precision, latents, timestep, text):
    model = WanTransformer(config, weights, build_ops(plan_ops(Target(CPU, precision), "reference")))
    return model(latents, timestep, model.encode_context(text, folded=0))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", [{}, {"cross_attn_norm": False}, {"patch_size": (1, 1, 2)}], ids=str)
def test_the_twin_is_as_near_the_truth_as_the_reference(dtype, change):
    config = replace(CONFIG, **change)
    weights = drawn_weights(tensor_shapes(config), CPU, dtype=torch.bfloat16)
    inputs = given(config)
    truth = kinema(config, weights, EXACT, *inputs).double()
    plain = kinema(config, weights, PRECISIONS["cuda"]["fp32" if dtype == torch.float32 else "bf16"], *inputs)
    twin = WanTwin(config, weights, dtype)(*inputs)
    found = gate.distance(twin.to(dtype), truth)
    assert gate.refusal(found, gate.allowance(gate.distance(plain, truth), dtype)) is None
    assert found.relative < (1e-5 if dtype == torch.float32 else 3e-2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["blocks.1.attn2.norm_k.weight", "blocks.0.scale_shift_table", "proj_out.bias"])
def test_every_weight_counts(name):
    weights = drawn_weights(tensor_shapes(CONFIG), CPU)
    tensors = {key: weights[key] for key in tensor_shapes(CONFIG)}
    inputs = given(CONFIG, batch=1)
    before = WanTwin(CONFIG, weights, torch.float32)(*inputs)
    after = WanTwin(CONFIG, type(weights)({**tensors, name: tensors[name] * 1.5}), torch.float32)(*inputs)
    assert gate.distance(after, before.double()).relative > 1e-4


@torch.no_grad()
def test_all_layers_share_one_compiled_block():
    compiled = []
    weights = drawn_weights(tensor_shapes(CONFIG), CPU)
    twin = WanTwin(CONFIG, weights, torch.float32, lambda block: compiled.append(block) or block)
    assert len(compiled) == 1 and len(twin._layers) == 2
