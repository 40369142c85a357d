"""The contract of `unpatchify`: a permutation, so exact, and the inverse of patch_embed's gather."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from kinema.ops import unpatchify
from kinema.ops.common import PRECISIONS, Target
from kinema.ops.patch_embed.reference import pack_patch_embed, patch_embed

OP = unpatchify.OP
ORDERS = ("patch_first", "channel_first")


@dataclass(frozen=True)
class Case:
    """grid: tokens along T, H, W."""

    order: str
    patch: tuple[int, int, int] = (1, 2, 2)
    grid: tuple[int, int, int] = (3, 4, 5)
    batch: int = 2
    channels: int = 3
    out: bool = False
    dtype: torch.dtype = torch.float32


PATCHES = ((1, 1, 1), (1, 2, 2), (2, 3, 1), (3, 1, 2), (1, 2, 3), (4, 8, 8))
CASES = {
    **{f"{o}_{'x'.join(map(str, p))}": Case(o, p, grid=(2, 3, 5)) for o in ORDERS for p in PATCHES},
    **{f"{o}_one": Case(o, (1, 1, 1), (1, 1, 1), 1, 1) for o in ORDERS},
    **{f"{o}_{d}": Case(o, (2, 3, 1), dtype=d) for o in ORDERS for d in (torch.bfloat16, torch.float16)},
    **{f"{o}_own_buffer": Case(o, (2, 3, 1), out=True) for o in ORDERS},
    **{f"{o}_one_channel": Case(o, (2, 3, 2), channels=1) for o in ORDERS},
    **{f"{o}_many_channels": Case(o, (1, 1, 2), channels=17, grid=(1, 5, 7)) for o in ORDERS},
}


def expected(x, case):
    """Where each value goes, one by one."""
    (t, h, w), (pt, ph, pw), channels = case.grid, case.patch, case.channels
    y = torch.empty(case.batch, channels, t * pt, h * ph, w * pw, dtype=x.dtype, device=x.device)
    for token, (i, j, k) in enumerate(product(range(t), range(h), range(w))):
        for a, b, c, channel in product(range(pt), range(ph), range(pw), range(channels)):
            if case.order == "patch_first":
                feature = ((a * ph + b) * pw + c) * channels + channel
            else:
                feature = ((channel * pt + a) * ph + b) * pw + c
            y[:, channel, i * pt + a, j * ph + b, k * pw + c] = x[:, token, feature]
    return y


def check_unpatchify(impl, case: Case):
    impl.flowing(case.dtype)
    draw = impl.draw(seed=sum(case.patch))
    tokens = case.grid[0] * case.grid[1] * case.grid[2]
    features = case.patch[0] * case.patch[1] * case.patch[2] * case.channels
    x = draw.normal(case.batch, tokens, features, dtype=case.dtype)
    truth = expected(x, case)
    buffer = draw.poison(*truth.shape, dtype=case.dtype) if case.out else None
    got = impl.functions.unpatchify(x, case.grid, case.patch, order=case.order, out=buffer)
    impl.expect(buffer is None or got.data_ptr() == buffer.data_ptr(), "did not write into out")
    impl.expect(got.is_contiguous(), f"strides {got.stride()} of {tuple(got.shape)} are not contiguous")
    impl.expect(got.dtype == case.dtype and got.shape == truth.shape, f"gave {got.dtype} {tuple(got.shape)}")
    impl.expect(torch.equal(got, truth), "a value is in the wrong place")


@pytest.mark.parametrize("name", CASES)
def test_unpatchify(impl, name):
    check_unpatchify(impl, CASES[name])


def gather(video, patch, order):
    """Patches as features, through the reference's patch_embed with an identity for a projection."""
    channels = video.shape[1]
    features = channels * patch[0] * patch[1] * patch[2]
    identity = torch.eye(features, device=video.device).view(features, channels, *patch)
    if order == "patch_first":
        identity = identity.view(channels, *patch, *identity.shape[1:]).permute(1, 2, 3, 0, 4, 5, 6, 7)
        identity = identity.reshape(features, channels, *patch)
    return patch_embed(video, pack_patch_embed(identity, target=Target(video.device, PRECISIONS["cpu"]["fp32"])))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("patch", PATCHES)
def test_it_is_the_inverse_of_the_gather(impl, order, patch):
    grid = (2, 1, 3)
    video = impl.draw().normal(2, 3, *(g * p for g, p in zip(grid, patch, strict=True)))
    assert torch.equal(impl.functions.unpatchify(gather(video, patch, order), grid, patch, order=order), video)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 3, 1)])
def test_it_is_the_transposed_convolution(impl, patch):
    """Tokens projected to patches and put back are a transposed convolution whose stride is its kernel."""
    draw, grid = impl.draw(), (2, 3, 4)
    tokens, weight = draw.normal(2, 24, 7), draw.normal(7, 5, *patch)
    features = torch.einsum("bsd,dcijk->bscijk", tokens, weight).flatten(2)
    got = impl.functions.unpatchify(features, grid, patch, order="channel_first")
    volume = tokens.transpose(1, 2).reshape(2, 7, *grid)
    wanted = F.conv_transpose3d(volume.double(), weight.double(), stride=patch)
    assert float((got.double() - wanted).abs().max()) <= 1e-5


def wrapped(impl, change):
    def run(x, grid, patch, *, order="patch_first", out=None):
        y = change(impl.functions.unpatchify, x, grid, patch, order)
        return y if out is None else out.copy_(y)

    return {"unpatchify": run}


def other_order(op, x, grid, patch, order):
    return op(x, grid, patch, order=ORDERS[1 - ORDERS.index(order)])


def default_order(op, x, grid, patch, order):
    return op(x, grid, patch)


def swapped_grid(op, x, grid, patch, order):
    t, h, w = grid
    return op(x, (t, w, h), patch, order=order).reshape(op(x, grid, patch, order=order).shape)


def swapped_patch(op, x, grid, patch, order):
    pt, ph, pw = patch
    return op(x, grid, (pt, pw, ph), order=order).reshape(op(x, grid, patch, order=order).shape)


def unwritten_tail(op, x, grid, patch, order):
    y = op(x, grid, patch, order=order).clone()
    y[-1, -1, -1, -1, -1] = float("nan")
    return y


def a_view(op, x, grid, patch, order):
    y = op(x, grid, patch, order=order)
    return y.transpose(1, 2).contiguous().transpose(1, 2)


MISTAKES = [other_order, default_order, swapped_grid, swapped_patch, unwritten_tail, a_view]


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    assert impl.catches(check_unpatchify, CASES, **wrapped(impl, mistake))


@pytest.mark.parametrize("wrong", ["tokens", "features", "order"])
def test_what_does_not_fit_is_refused(impl, wrong):
    x = impl.draw().normal(1, 24, 12)
    grid, patch, order = (2, 3, 4), (1, 2, 2), "patch_first"
    if wrong == "tokens":
        grid = (2, 3, 5)
    elif wrong == "features":
        patch = (1, 5, 2)
    else:
        order = "width_first"
    with pytest.raises(ValueError, match=r"fill|order"):
        impl.functions.unpatchify(x, grid, patch, order=order)
