"""Whether tensors share memory, against a list of every address; and what only looks so is let through."""

import pytest
import torch

from kinema.ops import norm_modulate
from kinema.ops.common.overlap import alike, has_internal_overlap, share

OP = norm_modulate.OP


def places(t):
    """The address of every element, by its index, counted in bytes."""
    at = torch.tensor(t.data_ptr())
    for size, stride in zip(t.shape, t.stride(), strict=True):
        at = at.unsqueeze(-1) + torch.arange(size) * stride * t.itemsize
    return at.flatten()


def bytes_of(t):
    return {int(at) + i for at in places(t) for i in range(t.itemsize)}


def views(generator, count, buffer):
    """Random views into a buffer of bytes: slices, columns, transposed and expanded ones, of two widths."""
    for _ in range(count):
        dtype = (torch.float32, torch.float16)[int(torch.randint(2, (), generator=generator))]
        memory = buffer.view(dtype)
        size = torch.randint(1, 5, (3,), generator=generator).tolist()
        stride = torch.randint(0, 7, (3,), generator=generator).tolist()
        reach = sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        first = int(torch.randint(0, memory.numel() - reach, (), generator=generator))
        yield memory.as_strided(size, stride, first)


def test_sharing_is_what_a_list_of_addresses_says():
    generator, buffer = torch.Generator().manual_seed(0), torch.zeros(400, dtype=torch.uint8)
    one, other = (list(views(generator, 400, buffer)) for _ in range(2))
    said, wanted = ([f(a, b) for a, b in zip(one, other, strict=True)] for f in (share, both))
    assert said == wanted and 40 < sum(wanted) < 360


def both(a, b):
    return bool(bytes_of(a) & bytes_of(b))


def test_folded_is_never_missed():
    """What folds is always found; of what does not, only strides that interleave are taken for it."""
    found = 0
    for t in views(torch.Generator().manual_seed(1), 400, torch.zeros(400, dtype=torch.uint8)):
        folds = len(places(t).unique()) < t.numel()
        assert has_internal_overlap(t) or not folds
        found += folds
    assert 40 < found < 360
    plain = torch.zeros(2, 5, 8)
    for t in (plain, plain.mT, plain[:, 1:3], plain[..., 2:5], plain[:1, :1], plain[:0], plain.permute(2, 0, 1)):
        assert not has_internal_overlap(t)


def test_alike_is_the_same_elements_in_the_same_order():
    x = torch.zeros(1, 4, 4)
    assert alike(x, x.view(1, 4, 4)) and alike(x, x.as_strided((1, 4, 4), (99, 4, 1)))
    assert not alike(x, x.mT) and not alike(x, x.clone()) and not alike(x, x.view(torch.int32))


@pytest.mark.parametrize("first", [0, 8])
def test_columns_of_one_buffer_are_apart(impl, first):
    """A result that goes beside its input, as into a projection's buffer."""
    draw = impl.draw()
    buffer = draw.normal(2, 6, 16)
    x, out = buffer[..., first : first + 8], buffer[..., 8 - first : 16 - first]
    wanted = impl.functions.norm_modulate(x.clone(), eps=1e-6)
    assert impl.functions.norm_modulate(x, eps=1e-6, out=out) is out
    assert torch.equal(out, wanted)
    with pytest.raises(ValueError, match="shares memory"):
        impl.functions.norm_modulate(buffer[..., :8], eps=1e-6, out=buffer[..., 4:12])
