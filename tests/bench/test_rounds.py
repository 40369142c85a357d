"""Interleaved rounds: who is called when, and how often."""

import torch

from kinema.bench.rounds import interleaved


def test_each_call_once_a_round_and_who_comes_first_changes():
    order = []
    calls = {name: (lambda n=name: order.append(n)) for name in "abc"}
    samples = interleaved(calls, 3, warmup=0, shortest=0, advance=lambda: order.append("|"))
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order) == "abc|bca|cab|"
    assert all(seconds > 0 for samples_of in samples.values() for seconds in samples_of)


def test_warmup_is_not_measured():
    count = []
    samples = interleaved({"a": lambda: count.append(1)}, 2, warmup=4, shortest=0)
    assert len(count) == 6 and len(samples["a"]) == 2


def test_a_short_call_is_repeated_and_its_sample_is_of_one(monkeypatch):
    clock, calls = [0.0], []

    def call():
        calls.append(1)
        clock[0] += 2e-4

    monkeypatch.setattr("kinema.bench.rounds.time.perf_counter", lambda: clock[0])
    samples = interleaved({"a": call}, 3, warmup=0, device=torch.device("cpu"))
    assert len(calls) == 1 + 3 * 5, "one to see how long it is, then 1 ms a sample"
    assert all(abs(seconds - 2e-4) < 1e-12 for seconds in samples["a"])
