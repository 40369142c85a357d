"""The contract of `scheduler_step`, held against plain sums in float64."""

from dataclasses import dataclass

import pytest
import torch

from kinema.ops import scheduler_step

OP = scheduler_step.OP
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """shape: of a term. terms: the dtype of each. unread: (sample, term) pairs that have no coefficient, and hold NaN.

    absent: (output, term) pairs without a coefficient, of a term that other outputs take.
    aliased: the term that each output overwrites (None: a new buffer, "own": the caller's).
    strided: samples of terms and of own outputs lie apart, each in its own way.
    """

    shape: tuple[int, ...] = (2, 4, 3, 5, 7)
    terms: tuple[torch.dtype, ...] = (FP32, FP32, FP32)
    outputs: int = 1
    unread: tuple[tuple[int, int], ...] = ()
    absent: tuple[tuple[int, int], ...] = ()
    aliased: tuple[int, ...] | str | None = None
    strided: bool = False
    cancelling: bool = False


CASES = {
    "one_number": Case((1, 1), (FP32,)),
    "euler": Case(terms=(FP32, FP32)),
    "guided_euler": Case(),
    "guided_multistep": Case(terms=(FP32,) * 6, outputs=3),
    "eight_terms": Case((3, 2, 1, 9, 11), (FP32,) * 8, outputs=4),
    "one_sample": Case((1, 130), (FP32, FP32), outputs=2),
    "many_samples": Case((5, 33), outputs=2),
    "bf16_outputs_of_the_model": Case(terms=(FP32, BF16, BF16), outputs=2),
    "fp16_outputs_of_the_model": Case(terms=(FP32, FP16, FP16, FP32)),
    "all_bf16": Case(terms=(BF16, BF16)),
    "float64": Case(terms=(FP64, FP64, FP64), outputs=2),
    "float64_sample": Case(terms=(FP64, FP32, BF16)),
    "float64_history": Case(terms=(FP32, BF16, FP64), unread=((0, 2), (1, 2))),
    "no_history_yet": Case(terms=(FP32,) * 4, outputs=2, unread=((0, 2), (1, 2), (0, 3), (1, 3))),
    "one_sample_has_no_history_yet": Case((3, 40), (FP32,) * 4, outputs=2, unread=((1, 3), (2, 3), (2, 1))),
    "bf16_unread": Case((3, 40), (FP32, BF16, BF16), unread=((0, 2), (2, 1))),
    "nothing_is_read": Case((2, 9), (FP32, FP32), outputs=2, unread=((1, 0), (1, 1))),
    "over_the_sample": Case(outputs=1, aliased=(0,)),
    "over_sample_and_history": Case(terms=(FP32,) * 5, outputs=3, aliased=(0, 4, 3)),
    "outputs_over_each_others_terms": Case(terms=(FP32, FP32), outputs=2, aliased=(1, 0)),
    "own_buffers": Case(outputs=2, aliased="own"),
    "each_output_has_its_own_terms": Case(terms=(FP32,) * 4, outputs=2, absent=((0, 1), (0, 3), (1, 0), (1, 2))),
    "samples_apart_in_memory": Case(terms=(FP32, BF16, FP32), outputs=2, strided=True),
    "samples_apart_in_own_buffers": Case((3, 4, 9), outputs=2, strided=True, aliased="own"),
    "guidance_cancels": Case(terms=(FP32, FP32, FP32), cancelling=True),
}


def check_scheduler_step(impl, case: Case):
    for dtype in set(case.terms) - {FP64}:  # float64 terms are part of this op everywhere
        impl.flowing(dtype)
    draw = impl.draw(seed=len(case.terms) + case.outputs)
    batch, count = case.shape[0], len(case.terms)
    # rows at different steps: nothing that holds for one sample holds for the next
    table = draw.normal(batch, case.outputs, count)
    terms = [draw.normal(*case.shape, dtype=dtype) for dtype in case.terms]
    if case.cancelling:  # 1 + g and −g of nearly equal predictions, at a large g
        table[..., 1], table[..., 2] = 101.0, -100.0
        terms[2] = terms[1] + 1e-3 * terms[2]
    for output, term in case.absent:
        table[:, output, term] = 0.0
    for sample, term in case.unread:
        table[sample, :, term] = 0.0
        terms[term][sample] = NAN
    if case.strided:
        terms = [with_gaps(term, 2 + k) for k, term in enumerate(terms)]
    dtype = FP64 if FP64 in case.terms else FP32

    truth = torch.zeros(case.outputs, *case.shape, dtype=FP64, device=impl.device)
    magnitude = torch.zeros_like(truth)
    for b in range(batch):
        for m in range(case.outputs):
            for k in range(count):
                c = float(table[b, m, k])
                if c != 0.0:
                    truth[m, b] += c * terms[k][b].double()
                    magnitude[m, b] += abs(c) * terms[k][b].double().abs()

    def call(op):
        held = [term.clone() for term in terms] if isinstance(case.aliased, tuple) else terms
        out = None
        if isinstance(case.aliased, tuple):
            out = [held[k] for k in case.aliased]
        elif case.aliased == "own":
            out = [draw.poison(*case.shape, dtype=dtype) for _ in range(case.outputs)]
            if case.strided:
                out = [with_gaps(buffer, 2 + m) for m, buffer in enumerate(out)]
        got = op.scheduler_step(held, table, out=out)
        impl.expect(isinstance(got, tuple) and len(got) == case.outputs, "wanted a tuple of outputs")
        for result, buffer in zip(got, out or [None] * len(got), strict=True):
            impl.expect(buffer is None or result.data_ptr() == buffer.data_ptr(), "did not write into out")
            impl.expect(out is not None or all(result.data_ptr() != t.data_ptr() for t in terms), "gave a term back")
        return torch.stack(got)

    impl.judge(call, truth, magnitude, dtype, unchanged=[*terms, table])


def with_gaps(tensor, apart):
    """The same samples, `apart` samples from one to the next, with NaN between them."""
    wider = tensor.new_full((apart * tensor.shape[0], *tensor.shape[1:]), NAN)
    wider[::apart] = tensor
    return wider[::apart]


@pytest.mark.parametrize("name", CASES)
def test_scheduler_step(impl, name):
    check_scheduler_step(impl, CASES[name])


def wrapped(impl, change):
    def run(terms, table, *, out=None):
        results = change(impl.functions.scheduler_step, terms, table)
        if out is None:
            return results
        return tuple(buffer.copy_(result) for buffer, result in zip(out, results, strict=True))

    return {"scheduler_step": run}


def one_output_after_the_other(impl):
    """Each written before the next is computed: an output over a term spoils what follows."""

    def run(terms, table, *, out=None):
        results = []
        for m in range(table.shape[1]):
            buffer = None if out is None else [out[m]]
            results += impl.functions.scheduler_step(terms, table[:, m : m + 1], out=buffer)
        return tuple(results)

    return {"scheduler_step": run}


def everything_read(op, terms, table):
    dtype = FP64 if any(t.dtype == FP64 for t in terms) else FP32
    stacked = torch.stack([term.to(dtype) for term in terms])
    return tuple(torch.einsum("bmk,kb...->mb...", table.to(dtype), stacked))


MISTAKES = {
    "coefficients_of_the_first_sample": lambda op, terms, table: op(terms, table[:1].expand_as(table).contiguous()),
    "unread_terms_are_read": everything_read,
    "outputs_swapped": lambda op, terms, table: op(terms, table.flip(1)),
    "terms_swapped": lambda op, terms, table: op(terms, table.roll(1, 2)),
    "last_term_dropped": lambda op, terms, table: op(
        terms, torch.cat((table[..., :-1], torch.zeros_like(table[..., -1:])), -1)
    ),
    "sums_in_bf16": lambda op, terms, table: tuple(
        t.to(BF16).to(t.dtype) for t in op([term.nan_to_num(0.0) for term in terms], table)
    ),
    "coefficients_in_bf16": lambda op, terms, table: op(terms, table.to(BF16).to(FP32)),
    "float64_as_float32": lambda op, terms, table: op([t.float() for t in terms], table),
    "tail_unwritten": lambda op, terms, table: tuple(
        torch.where(torch.arange(t.numel(), device=t.device).view(t.shape) == t.numel() - 1, NAN, t)
        for t in op(terms, table)
    ),
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    assert impl.catches(check_scheduler_step, CASES, **wrapped(impl, MISTAKES[mistake]))


@pytest.mark.planted
def test_outputs_written_one_after_the_other_are_noticed(impl):
    assert impl.catches(check_scheduler_step, CASES, **one_output_after_the_other(impl)) == "over_sample_and_history"


def test_guidance_of_one_is_the_conditional_prediction(impl):
    """uncond + 1 · (cond − uncond): bit for bit the step without guidance, and uncond is not read."""
    draw = impl.draw()
    sample, cond = draw.normal(2, 4, 3, 5), draw.normal(2, 4, 3, 5)
    uncond = draw.poison(2, 4, 3, 5)
    guided = torch.tensor([[[1.0, -0.2, 0.0]], [[1.0, -0.7, 0.0]]], device=impl.device)
    (with_uncond,) = impl.functions.scheduler_step([sample, cond, uncond], guided)
    (without,) = impl.functions.scheduler_step([sample, cond], guided[..., :2].contiguous())
    assert torch.equal(with_uncond, without)


def test_requests_at_different_steps_equal_each_alone(impl):
    """Bit for bit: a request's frames must not depend on its neighbours in a batch."""
    draw = impl.draw()
    terms = [draw.normal(3, 4, 5, 7) for _ in range(4)]
    table = draw.normal(3, 2, 4)
    together = impl.functions.scheduler_step(terms, table)
    for b in range(3):
        alone = impl.functions.scheduler_step([term[b : b + 1] for term in terms], table[b : b + 1])
        for a, t in zip(alone, together, strict=True):
            assert torch.equal(a[0], t[b])


@pytest.mark.parametrize("wrong", ["terms", "batch", "shapes", "out"])
def test_what_does_not_fit_is_refused(impl, wrong):
    draw = impl.draw()
    terms, table, out = [draw.normal(2, 3), draw.normal(2, 3)], draw.normal(2, 1, 2), None
    if wrong == "terms":
        table = draw.normal(2, 1, 3)
    elif wrong == "batch":
        table = draw.normal(3, 1, 2)
    elif wrong == "shapes":
        terms[1] = draw.normal(2, 4)
    else:
        out = [draw.poison(2, 4)]
    with pytest.raises(ValueError, match=r"do not fit|writes"):
        impl.functions.scheduler_step(terms, table, out=out)
