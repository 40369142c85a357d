"""What the tests of ops allocate, and the ops themselves, is poisoned until it is written."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kinema.ops import unpatchify
from kinema.ops.common import native
from kinema.ops.common.pages import HUGE_PAGE, aligned_bytes
from kinema.ops.unpatchify.reference import unpatchify as right

OP = unpatchify.OP
LIKE = torch.zeros(6, 5, dtype=torch.float32)
MAKERS = {
    "empty": lambda dtype: torch.empty(6, 5, dtype=dtype, device="cpu"),
    "empty_like": lambda dtype: torch.empty_like(LIKE, dtype=dtype),
    "empty_strided": lambda dtype: torch.empty_strided((6, 5), (1, 6), dtype=dtype, device="cpu"),
    "new_empty": lambda dtype: LIKE.new_empty(6, 5, dtype=dtype),
}
poisoned_here = pytest.mark.skipif(torch.cuda.is_available(), reason="only a machine without a GPU poisons memory")


@poisoned_here
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_numbers_are_nan_until_they_are_written(maker, dtype):
    LIKE.clone()  # what was freed there is finite
    made = MAKERS[maker](dtype)
    assert made.dtype == dtype and bool(made.float().isnan().all())


@poisoned_here
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_whole_numbers_are_the_largest_until_they_are_written(maker, dtype):
    assert bool((MAKERS[maker](dtype) == torch.iinfo(dtype).max).all())


@poisoned_here
@pytest.mark.parametrize("count", [100, HUGE_PAGE + 100])
def test_packed_weights_and_scratch_are_too(count):
    assert bool((aligned_bytes(count) == 0xFF).all())


@poisoned_here
def test_scratch_of_the_test_before_is_not_there():
    assert native._local.workspace is None


def unwritten(x, grid, patch, *, order="patch_first", out=None):
    """The right shape, and what lay there: often the right result, of the call that was just made."""
    y = right(x, grid, patch, order=order)
    shape = y.shape
    del y
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def unwritten_in_part(x, grid, patch, *, order="patch_first", out=None):
    y = right(x, grid, patch, order=order)
    shape, written = y.shape, y[..., :-1].clone()
    del y
    result = torch.empty(shape, dtype=x.dtype, device=x.device)
    result[..., :-1] = written
    return result


@poisoned_here
@pytest.mark.planted
@pytest.mark.parametrize("mistake", [unwritten, unwritten_in_part])
def test_an_op_that_leaves_its_result_unwritten_is_noticed(impl, mistake):
    x = impl.draw().normal(2, 24, 48)
    call = {"x": x, "grid": (2, 3, 4), "patch": (1, 2, 2)}
    truth = right(**call).double()
    with pytest.raises(AssertionError, match="error of inf ulp"):
        replace(impl, functions=SimpleNamespace(unpatchify=mistake)).judge(
            lambda functions: functions.unpatchify(**call), truth, truth.abs(), x.dtype
        )
