"""Which tables of native kernels a test has to run on: those whose code differs in what it calls.

csrc/cpu is compiled once for each instruction set. `portable`, `avx2` and `avx512` have a header of vectors each, so no
kernel of theirs is another's. `avx512vnni` and `avx512bf16` are `avx512` with one macro more each, and a kernel that
asks for neither is the same source under another name. Who asks, by `grep -rn __AVX512VNNI__ csrc/cpu` and from there
by the callers, until test_the_macros_of_instruction_sets_are_where_they_were finds something new:

* `__AVX512VNNI__`: the step of an int8 product and its highest code (simd_avx512.h). `multiply_i8` takes that step, for
  linear's codes (gemm.h, linear.h) and for the logits of attention in int8 (attention_i8.h).
* `__AVX512BF16__`: products of pairs (simd_avx512.h, bf16.h), which a linear of bf16 or e4m3 is (gemm.h, linear.h), and
  how its panels lie (panels.h). No other op stores a weight in bf16. Attention of queries and keys in bf16 is such
  products too (attention_bf16.h), and qk_norm_rope rounds to bf16 by an instruction for it (rows.h).
* probe.h asks for both, to measure; the ops do not call it.

`quantize` rounds rows as norm_modulate does (rows.h): vectors of fp32. Attention in fp8 is the reference, on every
table.
"""

import os

from kinema.ops.common.native import ISA_VARIABLE, instruction_sets

SUITE_VARIABLE = "KINEMA_TESTS"  # quick, all, or unset for what lies between
VNNI, BF16 = "avx512vnni", "avx512bf16"
BEFORE = {VNNI: "avx512", BF16: VNNI}  # what a table is but for its macro

# what is called: the tables that differ from the one before
DIFFER = {
    "linear": {VNNI, BF16},
    "linear_norm": {VNNI, BF16},  # the same products, of rows that are normed first
    "attention_int8": {VNNI},
    "qk_norm_rope": {BF16},
}
# not the table's code at all, or code that others' cases reach on every table
ON_ONE_TABLE = {
    "attention_fp8",  # the reference (kernels/attention/cpu.py)
    "attention_bf16",  # elsewhere attention in fp32 (kernels/attention/check.py)
    # `cpu` is that too wherever Winograd has no part, and tests/native sums large pictures directly on every table
    "conv3d, direct",
}


def tables(called: str) -> list[str]:
    """The instruction sets to test `called` on, best first; those that KINEMA_CPU_ISA leaves, if it is set."""
    known = instruction_sets()
    if ISA_VARIABLE in os.environ:
        return [isa for isa in known if isa == os.environ[ISA_VARIABLE]]
    suite = os.environ.get(SUITE_VARIABLE)
    if suite == "all":
        return known
    if suite == "quick" or called in ON_ONE_TABLE:
        return known[:1]
    return [isa for isa in known if isa in DIFFER.get(called, ()) or not _same_before(isa, known)]


def _same_before(isa: str, known: list[str]) -> bool:
    """Whether a table of `known` has the same source, where neither macro is asked for."""
    before = BEFORE.get(isa)
    return before is not None and (before in known or _same_before(before, known))
