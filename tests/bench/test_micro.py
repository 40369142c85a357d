"""Micro-benchmarks: a few calls of each op at the sample model's sizes, by pytest-benchmark (`make bench`).

`make test` makes each call once. A result that the gate refuses is a failure, and has no time.
"""

from functools import lru_cache

import pytest
import torch

from kinema.bench.ops import REFERENCE, TORCH, candidates, gated
from kinema.ops import target_for
from kinema.ops.cases import all_cases

CASES = {
    ("linear", "sample 80 qkv"),
    ("linear", "sample 1280 up"),
    ("linear", "sample 1280 down"),
    ("attention", "sample 80 self"),
    ("attention", "sample 1280 self"),
    ("norm_modulate", "sample 1280 modulated"),
    ("qk_norm_rope", "sample 1280 qk"),
    ("patch_embed", "sample 80"),
    ("unpatchify", "sample 80"),
    ("scheduler_step", "sample 80 UniPC"),
    ("conv3d", "sample 16"),
}
CHOSEN = [case for case in all_cases() if (case.op, case.name) in CASES]


@lru_cache(maxsize=1)
def calls_of(case):
    """The calls that are right, their work, and what became of every implementation."""
    target = target_for("cpu", "fp32")
    implementations = candidates(case.op, target)
    rows = {i.backend: {"name": i.backend} for i in implementations}
    with torch.inference_mode():
        return *gated(case, target, implementations, rows), rows


def test_every_chosen_case_is_there():
    assert {(case.op, case.name) for case in CHOSEN} == CASES


@pytest.mark.parametrize("backend", ["cpu", TORCH, REFERENCE])
@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: f"{case.op} {case.name}")
def test_op(case, backend, benchmark, request):
    calls, work, rows = calls_of(case)
    if backend not in rows:
        pytest.skip(f"{case.op} has no implementation of this kind here")
    assert backend in calls, rows[backend]
    benchmark.group = f"{case.op} {case.name}, fp32"
    benchmark.extra_info.update(flops=work.flops, bytes=work.bytes, threads=torch.get_num_threads())
    benchmark.disabled = not request.config.getoption("benchmark_only")  # then it only calls
    with torch.inference_mode():
        benchmark(calls[backend])
