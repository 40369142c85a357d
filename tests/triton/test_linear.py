"""What only `linear` in Triton has: tiles in parts, and the ways its operands are read."""

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common import PRECISIONS, Target
from kinema.ops.common.launch import Config, forced
from kinema.ops.linear import triton as op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP32 = Target(torch.device(DEVICE), PRECISIONS["cuda"]["fp32"])


def tiles(parts, tma):
    """fp32 in tiles of 32 rows, 64 columns and 16 features."""
    blocks = {"ROWS": 32, "COLUMNS": 64, "BYTES": 64, "PARTS": parts, "GROUP": 2, "PER_SM": 1, "TMA": tma}
    return forced({"linear/large_fp32": Config(blocks)})


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize(("parts", "tma", "gated"), list(product((1, 2, 4), (0, 1), (False, True))))
@pytest.mark.parametrize("features", [48, 40])  # whole tiles of features, and a cut one
def test_parts_and_ways_of_reading_change_nothing(parts, tma, gated, features):
    """Against float64: the same columns, in their order, however a tile is read and cut up to be stored."""
    x, weight, bias = drawn(1, 35, features, seed=1), drawn(70, features, seed=2), drawn(70, seed=3)
    gate = {"gate_weight": drawn(70, features, seed=4), "gate_bias": drawn(70, seed=5)} if gated else {}
    packed = op.pack_linear(weight, bias, **gate, target=FP32)
    with tiles(parts, tma):
        y = op.linear(x, packed, activation="silu")
    h = x.double() @ weight.double().T + bias.double()
    if gated:
        g = x.double() @ gate["gate_weight"].double().T + gate["gate_bias"].double()
        wanted = torch.nn.functional.silu(g) * h
    else:
        wanted = torch.nn.functional.silu(h)
    assert float((y.double() - wanted).abs().max()) <= 2e-6 * float(wanted.abs().max())
