"""The contract of `quantize`: each value is the nearest representable one, whatever rounding the scale took."""

from dataclasses import dataclass

import pytest
import torch

from kinema.ops import quantize
from kinema.ops.common import Quantized

OP = quantize.OP
FP32 = torch.float32


@dataclass(frozen=True)
class Case:
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype = FP32
    std: float = 1.0
    layout: str = "contiguous"


SHAPES = ((1,), (7,), (3, 13), (2, 33, 65), (2, 3, 5, 8), (1, 2, 513))
CASES = {
    **{f"{k}_{'x'.join(map(str, s))}": Case(k, s) for k in ("fp8", "int8") for s in SHAPES},
    **{f"{k}_{d}": Case(k, (2, 9, 40), d) for k in ("fp8", "int8") for d in (torch.bfloat16, torch.float16)},
    **{f"{k}_std_{std}": Case(k, (2, 5, 40), std=std) for k in ("fp8", "int8") for std in (1e-8, 3e4, 1e30)},
    **{f"{k}_{y}": Case(k, (3, 5, 24), layout=y) for k in ("fp8", "int8") for y in ("columns", "transposed")},
}


def e4m3_spacing(x: torch.Tensor) -> torch.Tensor:
    """Distance between neighbours of e4m3 around x: 8 to an octave, and no finer than 2⁻⁹."""
    return 2.0 ** ((torch.frexp(x).exponent - 1).clamp(min=-6).double() - 3)


def check_quantize(impl, case: Case):
    impl.flowing(case.dtype)
    draw = impl.draw(seed=len(case.shape))
    x = draw.normal(*case.shape, std=case.std, dtype=case.dtype)
    if len(case.shape) > 1:
        flat = x.view(-1, x.shape[-1])
        flat[0] *= 50.0 if case.std < 1e3 else 1.0  # a loud token: a scale for all would drown the others
        flat[-1] = 0.0
    x = spread(x, draw, case.layout)
    got = impl.functions.quantize(x, case.kind)
    impl.expect(isinstance(got, Quantized), f"gave a {type(got).__name__}")
    limit, dtype = (448.0, torch.float8_e4m3fn) if case.kind == "fp8" else (127.0, torch.int8)
    impl.expect(got.data.dtype == dtype and got.data.shape == x.shape, f"data is {got.data.dtype} {got.data.shape}")
    impl.expect(got.scale.dtype == FP32 and got.scale.shape == (*x.shape[:-1], 1), f"scale is {got.scale.shape}")

    values, scale, data = x.double(), got.scale.double(), got.data.double()
    wanted = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / limit
    ulp = torch.finfo(FP32).eps
    impl.expect(bool(((scale - wanted).abs() <= 2 * ulp * wanted).all()), "scale is not max|x| / limit")
    steps = values / scale
    if case.kind == "int8":
        half = torch.full_like(steps, 0.5)
    else:
        # where the step below is finer (x just under a power of two) the nearest value is nearer still
        half = 0.5 * torch.minimum(e4m3_spacing(steps), e4m3_spacing(data))
    slack = 4 * ulp * steps.abs()
    impl.expect(bool(((steps - data).abs() <= half + slack).all()), "a value is not the nearest one")


def spread(x, draw, layout):
    """The same values at other strides over the leading axes."""
    if layout == "columns":
        wider = draw.normal(*x.shape[:-1], x.shape[-1] + 7, dtype=x.dtype)
        wider[..., 3:-4] = x
        return wider[..., 3:-4]
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x


@pytest.mark.parametrize("name", CASES)
def test_every_value_is_the_nearest(impl, name):
    check_quantize(impl, CASES[name])


def check_ties(impl, kind: str):
    """With a largest value equal to the limit the scale is exactly 1, and ties can be written down."""
    if kind == "int8":
        x, wanted = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 0.0], [127, 0, 2, 2, 0, -2, -2, 126, 0]
    else:
        # 17 and 19 lie between 16, 18, 20; 2⁻¹⁰ is half of the smallest value
        x = [448.0, 17.0, 19.0, -17.0, 25.0, 432.0, 2**-10, 3 * 2**-10, -(2**-10), 1.0625]
        wanted = [448, 16, 20, -16, 24, 448, 0, 2 * 2**-9, 0, 1.0]
    got = impl.functions.quantize(torch.tensor([x], device=impl.device), kind)
    impl.expect(float(got.scale) == 1.0, f"scale {float(got.scale)}, wanted 1")
    impl.expect(got.data.double().tolist() == [wanted], f"{got.data.double().tolist()}, wanted {wanted}")


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_ties_go_to_even(impl, kind):
    check_ties(impl, kind)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_zero_token_gives_zeros_and_a_positive_scale(impl, kind):
    x = impl.draw().normal(3, 8)
    x[1] = 0.0
    got = impl.functions.quantize(x, kind)
    assert 0.0 < float(got.scale[1]) < 1e-10
    assert bool((got.data[1].float() == 0).all())
    assert bool(got.dequantize().isfinite().all())


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_the_largest_value_comes_back(impl, kind):
    """Also where scale is rounded down, so that x / scale exceeds the limit: e4m3 turns an overflow into NaN."""
    x = impl.draw(1).uniform(4096, 1, low=0.1, high=100.0)
    got = impl.functions.quantize(x, kind)
    assert float(((got.dequantize() - x) / x).abs().max()) <= 2 * torch.finfo(FP32).eps


def mutant_quantize(limit=None, rounding=torch.round, rows=True, floor=1e-12):
    def quantise(x, kind):
        top = limit or (448.0 if kind == "fp8" else 127.0)
        x = x.float()
        largest = x.abs().amax(-1, keepdim=True) if rows else x.abs().amax().expand(*x.shape[:-1], 1)
        scale = largest.clamp(min=floor) / top
        steps = (x / scale).clamp(-top, top)
        if kind == "int8":
            return Quantized(rounding(steps).to(torch.int8), scale)
        if rounding is not torch.round:
            step = e4m3_spacing(steps).float()
            steps = rounding(steps / step) * step
        return Quantized(steps.to(torch.float8_e4m3fn), scale)

    return quantise


def away_from_zero(x):
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


MISTAKES = {
    "truncated": mutant_quantize(rounding=torch.trunc),
    "scale_for_all": mutant_quantize(rows=False),
    "limit_of_another_format": mutant_quantize(limit=120.0),
    "no_floor": mutant_quantize(floor=0.0),
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    assert impl.catches(check_quantize, CASES, quantize=MISTAKES[mistake])


@pytest.mark.planted
def test_ties_rounded_away_from_zero_are_noticed(impl):
    kinds = {"fp8": "fp8", "int8": "int8"}
    assert impl.catches(check_ties, kinds, quantize=mutant_quantize(rounding=away_from_zero))
    assert not impl.catches(check_ties, kinds, quantize=mutant_quantize())
