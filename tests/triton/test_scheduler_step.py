"""`scheduler_step` in Triton: blocks of any size, coefficients at any strides, and what its kernel cannot address."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common.launch import Config, forced
from kinema.ops.scheduler_step import reference
from kinema.ops.scheduler_step.triton import scheduler_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FP32, BF16 = torch.float32, torch.bfloat16


def drawn(*shape, dtype=FP32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("block", [1024, 16, 2])
def test_any_block(block):
    """Outputs over terms of other widths: every block reads all of its terms first. None divides 35 values."""
    terms = [drawn(3, 5, 7, seed=k, dtype=dtype) for k, dtype in enumerate((FP32, BF16, FP32, BF16))]
    table = drawn(3, 2, 4, seed=9)
    wanted = reference.scheduler_step(terms, table)
    with forced({"scheduler_step": Config({"BLOCK": block})}):
        got = scheduler_step(terms, table, out=[terms[2], terms[0]])
    assert got[0] is terms[2] and got[1] is terms[0]
    for result, truth in zip(got, wanted, strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-6, atol=1e-6)


def test_coefficients_at_any_strides():
    terms = [drawn(2, 40, seed=k) for k in range(3)]
    table = drawn(3, 4, 5).permute(2, 1, 0)[::3, 1:, :]
    assert table.shape == (2, 3, 3) and not table.is_contiguous()
    for result, truth in zip(scheduler_step(terms, table), reference.scheduler_step(terms, table), strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-6, atol=1e-6)


def test_the_same_launch_serves_every_step():
    """Coefficients are read where the terms are, so that a captured graph follows them."""
    terms, table = [drawn(2, 40, seed=k) for k in range(2)], drawn(2, 1, 2)
    buffer = torch.empty_like(terms[0])
    for step in range(3):
        table.copy_(drawn(2, 1, 2, seed=step))
        (result,) = scheduler_step(terms, table, out=[buffer])
        assert result is buffer
        torch.testing.assert_close(result, reference.scheduler_step(terms, table)[0], rtol=1e-6, atol=1e-6)


def test_nothing_behind_a_term_is_touched(guarded):
    terms = [guarded(drawn(2, 35, seed=k, dtype=dtype)) for k, dtype in enumerate((FP32, BF16))]
    table = guarded(drawn(2, 1, 2))
    wanted = reference.scheduler_step(terms, table)[0]
    (result,) = scheduler_step(terms, table, out=[terms[0]])
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=1e-6)


def test_what_the_kernel_cannot_address_is_refused():
    terms, table = [drawn(2, 4, 6), drawn(2, 4, 6, seed=1)], drawn(2, 1, 2)
    with pytest.raises(ValueError, match="contiguous"):
        scheduler_step([terms[0], terms[1].view(2, 6, 4).mT], table)
    with pytest.raises(ValueError, match="dense"):
        scheduler_step(terms, table, out=[torch.empty(2, 6, 4, device=DEVICE).mT])
    with pytest.raises(ValueError, match="buffers"):
        scheduler_step(terms, table, out=terms)
