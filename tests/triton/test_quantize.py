"""What only `quantize` in Triton has: two sources under one scale, and memory that it must not touch."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.quantize import reference
from kinema.ops.quantize import triton as op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("louder", [0, 1])
def test_two_sources_are_one(kind, louder):
    """Bit for bit what quantising their concatenation gives, whichever has the largest value."""
    generator = torch.Generator().manual_seed(louder)
    sources = [torch.randn(2, 5, channels, generator=generator).to(DEVICE) for channels in (24, 13)]
    sources[louder] *= 7.0
    got = op.quantize_together(*sources, kind)
    wanted = reference.quantize(torch.cat(sources, dim=-1), kind)
    assert torch.equal(got.scale, wanted.scale)
    assert torch.equal(got.data.view(torch.uint8), wanted.data.view(torch.uint8))


def test_nothing_behind_a_tensor_is_touched(guarded, monkeypatch):
    x, second = (torch.randn(1, 3, channels) for channels in (24, 13))
    wanted = op.quantize_together(x, second, "int8")
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: guarded(empty(*shape, **options)))
    got = op.quantize_together(guarded(x), guarded(second), "int8")
    assert torch.equal(got.data, wanted.data) and torch.equal(got.scale, wanted.scale)
