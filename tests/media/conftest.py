"""Small clips, and limits on what a test may wait for."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def soon():
    """Fails a test that waits (for a pipe's writer, say) instead of answering."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
