"""No tensor of ours takes its dtype or its place from the host application's defaults.

A host may call torch.set_default_dtype or torch.set_default_device. A kernel that is given the address of what it takes
for fp32 then writes behind its end, or to nowhere. So every allocation says both.
"""

from __future__ import annotations

import ast

import pytest
from torch.utils import _device

SOURCES = ("kernels", "engine", "benchmarks")
MAKERS = frozenset(
    {
        *("arange", "as_tensor", "asarray", "empty", "empty_permuted", "empty_strided", "eye", "full", "linspace"),
        *("logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor"),
        *("tril_indices", "triu_indices", "zeros", "bartlett_window", "blackman_window", "hamming_window"),
        *("hann_window", "kaiser_window", "empty_quantized", "fftfreq", "rfftfreq"),
    }
)
SPARSE = ("sparse_", "nested_tensor")  # of other layouts, which nothing here makes
TYPED = ("Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "BFloat16Tensor", "LongTensor", "IntTensor")
GLOBAL = ("set_default_dtype", "set_default_device", "set_default_tensor_type", "get_default_dtype")


def faults(source: str) -> list[str]:
    """What takes its dtype or device from torch's defaults, or asks for them; a line each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            hidden = [alias.name for alias in node.names if alias.name in (*MAKERS, *TYPED[1:], *GLOBAL)]
            found += [f"line {node.lineno}: from torch import {name}" for name in hidden]
        if not isinstance(node, ast.Call) or not _is_of_torch(node.func):
            continue
        name, given = node.func.attr, {keyword.arg for keyword in node.keywords}
        missing = [word for word in ("dtype", "device") if word not in given]
        if name in TYPED or name in GLOBAL:
            found.append(f"line {node.lineno}: torch.{name}")
        elif name in MAKERS and missing:
            found.append(f"line {node.lineno}: torch.{name} without {' and '.join(missing)}")
    return found


def _is_of_torch(function: ast.expr) -> bool:
    """torch.zeros, torch.fft.fftfreq, …"""
    if not isinstance(function, ast.Attribute):
        return False
    inner = function.value
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    return isinstance(inner, ast.Name) and inner.id == "torch"


@pytest.mark.parametrize("folder", SOURCES)
def test_every_allocation_says_its_dtype_and_its_device(root, folder):
    paths = sorted((root / folder).rglob("*.py"))
    assert len(paths) > 30
    found = [f"{path.relative_to(root)} {fault}" for path in paths for fault in faults(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        "torch.empty(3)",
        "torch.zeros(3, dtype=torch.float32)",
        "torch.zeros(3, device=x.device)",
        "torch.tensor(0.5)",
        "torch.full((2, 2), 1.0)",
        "torch.arange(4)",
        "torch.randn(2, generator=g)",
        "torch.fft.fftfreq(4)",
        "torch.as_tensor([1.0], dtype=d)",
        "torch.Tensor(3)",
        "torch.FloatTensor([1.0])",
        "torch.set_default_dtype(torch.float32)",
        "y = [torch.ones(()) for _ in range(2)]",
        "from torch import zeros",
    ],
)
def test_a_planted_allocation_is_found(planted):
    assert len(faults(f"import torch\n{planted}\n")) == 1


@pytest.mark.parametrize(
    "planted",
    [
        "torch.empty(3, dtype=torch.float32, device=x.device)",
        "torch.zeros_like(x)",
        "x.new_zeros(3)",
        "torch.from_numpy(a)",
        "numpy.zeros(3)",
        "self.torch_empty(3)",
        "isinstance(x, torch.Tensor)",
        "from torch import Tensor",
    ],
)
def test_what_says_both_or_follows_a_tensor_is_not(planted):
    assert faults(f"import torch\n{planted}\n") == []


def test_the_list_knows_whatever_torch_moves_to_a_default_device():
    known = {made.__name__.removeprefix("fft_") for made in _device._device_constructors()}
    assert {name for name in known if not name.startswith(SPARSE)} <= MAKERS
