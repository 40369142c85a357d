"""What the tests of single kernels share."""

import ctypes
import mmap

import pytest
import torch


@pytest.fixture
def guarded():
    """tensor → a copy, contiguous, behind whose last value there is no memory: to read or write there is a crash."""
    libc = ctypes.CDLL(None, use_errno=True)

    def copied(tensor):
        size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
        room = -(-size // page) * page
        memory = mmap.mmap(-1, room + page)
        behind = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + room
        if libc.mprotect(ctypes.c_void_p(behind), page, 0) != 0:
            pytest.skip("this system protects no pages")
        copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - size)
        return copy.view(tensor.shape).copy_(tensor)

    if torch.cuda.is_available():
        pytest.skip("the memory of a GPU is watched by compute-sanitizer")
    return copied
