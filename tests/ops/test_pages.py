"""Memory of packed weights, maps and scratch: aligned, on huge pages where there are some, gone when it is freed."""

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch

from kinema.buffers import machine as machine_memory
from kinema.ops.common.pages import CACHE_LINE, HUGE_PAGE, aligned_bytes

SMAPS = Path("/proc/self/smaps")
CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ON = CHOICE.is_file() and "[never]" not in CHOICE.read_text()


@pytest.fixture(autouse=True)
def poisoned():
    """Not here: poison takes the memory that is measured."""


@pytest.mark.parametrize("count", [1, 63, 4096, HUGE_PAGE - 1, HUGE_PAGE, 2 * HUGE_PAGE + 100])
def test_blocks_are_aligned_and_hold_what_is_written(count):
    block = aligned_bytes(count)
    assert block.dtype == torch.uint8 and block.shape == (count,)
    assert block.data_ptr() % (HUGE_PAGE if count >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE") else CACHE_LINE) == 0
    other = aligned_bytes(count).fill_(2)
    assert bool((block.fill_(1) == 1).all()) and bool((other == 2).all())


def huge_bytes(address: int) -> int:
    """What of the mapping at `address` lies on huge pages."""
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        start, stop = (int(end, 16) for end in part.split(maxsplit=1)[0].split("-"))
        if start <= address < stop:
            return 1024 * int(re.search(r"AnonHugePages: +(\d+)", part)[1])
    raise AssertionError("no mapping there")


@pytest.mark.skipif(not (SMAPS.is_file() and ON), reason="this system has no huge pages, or does not say")
def test_large_blocks_lie_on_huge_pages_and_take_no_more_than_is_used():
    block = aligned_bytes(16 * HUGE_PAGE + 5000)
    before = machine_memory.held_bytes(torch.device("cpu"))
    block.fill_(1)
    taken = machine_memory.held_bytes(torch.device("cpu")) - before
    assert huge_bytes(block.data_ptr()) > 0
    assert taken < 16.5 * HUGE_PAGE


@pytest.mark.skipif(not SMAPS.is_file(), reason="held bytes are read from /proc")
def test_freed_blocks_go_back():
    cpu = torch.device("cpu")
    block = aligned_bytes(64 * HUGE_PAGE).fill_(1)
    held, view = machine_memory.held_bytes(cpu), block[10:20].view(torch.int16)
    del block
    gc.collect()
    assert machine_memory.held_bytes(cpu) > held - HUGE_PAGE, "a view of it is left"
    del view
    assert machine_memory.held_bytes(cpu) < held - 60 * HUGE_PAGE


def refuse(*_args: object, **_kwargs: object) -> None:
    raise OSError("none here")


@pytest.mark.parametrize("missing", ["advice", "mapping"])
def test_systems_without(monkeypatch, missing):
    if missing == "advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "mmap", refuse)
    block = aligned_bytes(HUGE_PAGE + 1)
    assert block.shape == (HUGE_PAGE + 1,) and block.data_ptr() % CACHE_LINE == 0
