"""Benchmarks of tiny things: what is tested is the machinery, not the machine."""

import pytest


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    """Figures of the machine's peaks that take no time and mean nothing."""
    monkeypatch.setattr("kinema.bench.peaks.SIZES", {"cpu": (32,)})
    monkeypatch.setattr("kinema.bench.peaks.COPIED", {"cpu": 1 << 12})
