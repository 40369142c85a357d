"""What only `norm_modulate` in Triton has: memory that it must not touch."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.norm_modulate import triton as op


def test_nothing_behind_a_tensor_is_touched(guarded, monkeypatch):
    x, scale, shift = (torch.randn(1, tokens, 24) for tokens in (3, 1, 1))
    arguments = {"eps": 1e-6, "quantize": "int8"}
    wanted = op.norm_modulate(x, scale=scale, shift=shift, **arguments)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: guarded(empty(*shape, **options)))
    got = op.norm_modulate(guarded(x), scale=guarded(scale), shift=guarded(shift), **arguments)
    assert torch.equal(got.data, wanted.data) and torch.equal(got.scale, wanted.scale)
