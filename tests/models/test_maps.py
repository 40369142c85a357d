"""Maps that layers write over one another: the same numbers, in less memory; none where autograd keeps them."""

import pytest
import torch

from kinema.checkpoints.weights import Weights
from kinema.maps import Maps
from kinema.models.wan import WanConfig, WanTransformer, tensor_shapes
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.attention import BlockCausal

CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=32,
    in_channels=4,
    out_channels=4,
    text_dim=24,
    ffn_dim=160,
    num_layers=3,
    image_dim=20,
    added_kv_proj_dim=64,
)


def test_a_name_has_one_memory():
    maps, like = Maps(), torch.zeros(1)
    with torch.no_grad():
        first = maps.get("wide", (2, 3, 4), like)
        second, other = maps.get("wide", (4, 3), like), maps.get("narrow", (4, 3), like)
        assert first.shape == (2, 3, 4) and second.is_contiguous() and second.data_ptr() == first.data_ptr()
        assert other.data_ptr() != first.data_ptr()
        assert maps.get("wide", (5, 5), like).numel() == 25, "larger: a new one"
        assert maps.get("wide", (4, 3), like.double()).dtype == torch.float64
        assert maps.onto(like) is like


def test_autograd_and_those_who_do_not_want_them_get_none():
    x = torch.zeros(2)
    assert Maps().get("wide", (2,), x) is None and Maps().onto(x) is None
    with torch.no_grad():
        assert Maps(enabled=False).get("wide", (2,), x) is None and Maps(enabled=False).onto(x) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("causal", [None, BlockCausal(12)])
def test_a_forward_over_one_anothers_maps_is_the_same(precision, causal):
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(s, generator=generator) * 0.2 for name, s in tensor_shapes(CONFIG).items()}
    model = WanTransformer(CONFIG, Weights(weights), build_ops(plan_ops(target_for("cpu", precision))))
    latents = torch.randn(2, 4, 3, 6, 8, generator=generator)
    given, timesteps = latents.clone(), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        context = model.encode_context(
            torch.randn(2, 9, 24, generator=generator), torch.randn(2, 5, 20, generator=generator)
        )
        results = []
        for model.reuses_maps in (False, True, True):
            results.append(model(latents, timesteps, context, causal=causal))
    assert torch.equal(results[0], results[1]) and torch.equal(results[1], results[2])
    assert torch.equal(latents, given)
