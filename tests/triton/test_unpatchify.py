"""`unpatchify` in Triton: tokens at any strides, into any part of a larger video, through tiles of any size."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common.launch import Config, forced, recording
from kinema.ops.unpatchify import reference
from kinema.ops.unpatchify.triton import unpatchify

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRID, PATCH = (2, 3, 5), (1, 2, 3)
ORDERS = ("patch_first", "channel_first")


def tokens(channels=5):
    x = torch.arange(2 * 30 * 6 * channels, dtype=torch.float32, device=DEVICE)
    return x.view(2, 30, 6 * channels)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", ["features apart", "tokens apart", "turned"])
def test_tokens_at_any_strides(order, layout):
    x = tokens()
    if layout == "features apart":
        strided = torch.full((2, 30, 60), float("nan"), device=DEVICE)[:, :, ::2].copy_(x)
    elif layout == "tokens apart":
        strided = torch.full((4, 60, 31), float("nan"), device=DEVICE)[1::2, ::2, 1:].copy_(x)
    else:
        strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not strided.is_contiguous()
    wanted = reference.unpatchify(x, GRID, PATCH, order=order)
    assert torch.equal(unpatchify(strided, GRID, PATCH, order=order), wanted)


@pytest.mark.parametrize("order", ORDERS)
def test_into_some_channels_of_a_larger_video(order):
    x = tokens()
    video = torch.full((2, 8, 2, 6, 15), float("nan"), device=DEVICE)
    got = unpatchify(x, GRID, PATCH, order=order, out=video[:, 2:7])
    assert got.data_ptr() == video[:, 2:7].data_ptr()
    assert torch.equal(video[:, 2:7], reference.unpatchify(x, GRID, PATCH, order=order))
    assert video[:, :2].isnan().all() and video[:, 7:].isnan().all()
    with pytest.raises(ValueError, match="dense"):
        unpatchify(x, GRID, PATCH, order=order, out=torch.empty(2, 5, 2, 15, 6, device=DEVICE).mT)


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_behind_a_tensor_is_touched(order, guarded):
    x = tokens(channels=3)
    wanted = reference.unpatchify(x, GRID, PATCH, order=order)
    got = unpatchify(guarded(x), GRID, PATCH, order=order, out=guarded(torch.full_like(wanted, float("nan"))))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("elements", "groups"), [(4096, 32), (64, 4), (32, 8)])
def test_any_tile(order, elements, groups):
    """The first is a GPU's; none divides the 60 tokens or the 10 rows of a patch."""
    x = tokens()
    with forced({"unpatchify": Config({"ELEMENTS": elements, "GROUPS": groups})}):
        got = unpatchify(x, GRID, PATCH, order=order)
    assert torch.equal(got, reference.unpatchify(x, GRID, PATCH, order=order))


def test_no_alignment_is_promised_that_an_output_lacks():
    """A wrong promise stores to wrong addresses on a GPU; the interpreter does not look at it."""
    x = torch.empty(1, 12, 8, dtype=torch.bfloat16)
    odd = torch.empty(97, dtype=torch.bfloat16).as_strided((1, 2, 2, 6, 4), (48, 49, 24, 4, 1))
    for out, vector in ((None, 2), (odd, 1)):
        with recording(80) as kept:
            unpatchify(x, (2, 3, 2), (1, 2, 2), out=out)
        assert kept.launches[0].arguments["VECTOR"] == vector
