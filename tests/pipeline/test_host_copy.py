"""Chunks go to the host in order, whole, and one late, so that copies overlap the decoding."""

import pytest
import torch

from kinema.media.host_copy import to_host


def chunks(log, count=4, device="cpu"):
    for i in range(count):
        log.append(f"decode {i}")
        yield torch.full((1, 3, 2, 4, 4), float(i), device=device)


def test_chunks_of_the_cpu_pass_through():
    log = []
    got = to_host(chunks(log))
    assert float(next(got).max()) == 0.0
    assert log == ["decode 0"]
    assert [float(chunk.min()) for chunk in got] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_copy_is_waited_for_after_the_next_decoding(count):
    log = []

    def start(chunk):
        number = int(chunk.max())
        log.append(f"copy {number}")

        def wait():
            log.append(f"wait {number}")
            return chunk

        return wait

    assert [int(chunk.max()) for chunk in to_host(chunks(log, count), start)] == list(range(count))
    if count == 4:
        assert log[:5] == ["decode 0", "copy 0", "decode 1", "copy 1", "wait 0"]
    assert sum(entry.startswith("wait") for entry in log) == count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_copy():
    got = [chunk.clone() for chunk in to_host(chunks([], 6, "cuda"))]
    assert all(chunk.device.type == "cpu" for chunk in got)
    assert [float(chunk.mean()) for chunk in got] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
