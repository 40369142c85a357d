"""Maps that layers write over one another: the same numbers, in less memory; none where autograd keeps them."""

import pytest
import torch

from kinema.buffers.activations import ActivationBuffers, BufferPool
from kinema.checkpoints.weights import Weights
from kinema.families.wan.config import WanConfig, tensor_shapes
from kinema.families.wan.transformer import WanTransformer
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
    buffers, like = ActivationBuffers(), torch.zeros(1, dtype=torch.float32)
    with torch.no_grad():
        first = buffers.get("wide", (2, 3, 4), like)
        second, other = buffers.get("wide", (4, 3), like), buffers.get("narrow", (4, 3), like)
        assert first.shape == (2, 3, 4) and second.is_contiguous() and second.data_ptr() == first.data_ptr()
        assert other.data_ptr() != first.data_ptr()
        assert buffers.get("wide", (5, 5), like).numel() == 25, "larger: a new one"
        assert buffers.get("wide", (4, 3), like.double()).dtype == torch.float64
        assert buffers.in_place(like) is like
    with torch.inference_mode():
        buffers.get("wide", (4, 3), like).zero_()
    with torch.no_grad():
        assert buffers.get("wide", (4, 3), like).add_(1).shape == (4, 3), "not one of inference mode"


def test_a_shape_that_comes_again_is_the_same_view_of_the_memory_of_now():
    buffers, like = ActivationBuffers(), torch.zeros(1, dtype=torch.float32)
    with torch.no_grad():
        small = buffers.get("wide", (2, 3), like)
        assert buffers.get("wide", (2, 3), like) is small
        large = buffers.get("wide", (9, 9), like)
        again = buffers.get("wide", (2, 3), like)
        assert again.data_ptr() == large.data_ptr() and again is not small, "the old memory is nobody's any more"
        for size in range(1, 200):
            assert buffers.get("wide", (size,), like).shape == (size,)
    assert len(buffers._views) <= 64, "clips of ever new sizes do not pile up"


def test_autograd_and_those_who_do_not_want_them_get_none():
    x = torch.zeros(2)
    assert ActivationBuffers().get("wide", (2,), x) is None and ActivationBuffers().in_place(x) is None
    with torch.no_grad():
        off = ActivationBuffers(enabled=False)
        assert off.get("wide", (2,), x) is None and off.in_place(x) is None


def test_a_set_of_buffers_is_for_one_forward_at_a_time():
    pool, like = BufferPool(), torch.zeros(1, dtype=torch.float32)
    with torch.no_grad():
        with pool.lease() as first:
            with pool.lease() as second:
                assert first is not second
            kept = first.get("wide", (8,), like)
            with pool.lease() as third:
                assert third is second, "it was idle"
        with pool.lease() as again:
            assert again is first and again.get("wide", (8,), like).data_ptr() == kept.data_ptr()
        with pytest.raises(KeyError), pool.lease():
            raise KeyError
        pool.release()
        with pool.lease() as fresh:
            assert fresh is not first and fresh is not second
        with BufferPool(enabled=False).lease() as none:
            assert none.get("wide", (8,), like) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("causal", [None, BlockCausal(12)])
def test_a_forward_over_one_anothers_buffers_is_the_same(precision, causal):
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(s, generator=generator) * 0.2 for name, s in tensor_shapes(CONFIG).items()}
    model = WanTransformer(CONFIG, Weights(weights), build_ops(plan_ops(target_for("cpu", precision))))
    latents = torch.randn(2, 4, 3, 6, 8, generator=generator)
    given, larger = latents.clone(), torch.full((2, 4, 3, 8, 8), float("nan"))
    timesteps = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        context = model.encode_context(
            torch.randn(2, 9, 24, generator=generator), torch.randn(2, 5, 20, generator=generator)
        )
        results = []
        kept = BufferPool()
        for model.buffer_pool in (BufferPool(enabled=False), kept, kept, kept):
            results.append(model(latents, timesteps, context, causal=causal))
            model(larger, timesteps, context, causal=causal)  # leaves NaN in all it wrote
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(latents, given)
