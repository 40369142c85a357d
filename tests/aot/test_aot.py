"""The ahead-of-time ladder: a part of it on every run, and proof that it notices what it is there for.

`make aot` runs all of it. Compilation happens in processes of their own, since kernels are interpreted in this one.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

sys.path.insert(0, str(Path(__file__).parent))

import pages
import table as tables
from chips import CHIPS, programs_at_once
from gate import broken, worse
from listing import Listing
from measure import Measure
from recorded import triton_of
from sass import MMA, kind, parse

from kinema.ops.cases import Case, all_cases
from kinema.ops.common import PRECISIONS, Target
from kinema.ops.plan import OPS

ADA, HOPPER = (next(c for c in CHIPS if c.name == name) for name in ("sm_89", "sm_90a"))
PRODUCT = Case("linear", "synthetic", ("bf16",), prepare=lambda *_: None)
PLAIN = replace(PRODUCT, op="norm_modulate")


def run(script, *arguments):
    """A script of this folder in a process that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )


def test_one_case_of_every_kernel_is_as_the_table_says():
    done = run("ladder.py", "--quick")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    done = run("synthetic.py", str(tmp_path_factory.mktemp("builds")))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def measures(synthetic):
    return {name: Measure.from_json(values) for name, values in synthetic["measures"].items()}


def test_a_launch_is_compiled_as_the_jit_would(synthetic):
    assert synthetic["as the jit"] == [True] * len(synthetic["measures"])


def test_a_kernel_that_spills_is_noticed(measures):
    assert broken(PLAIN, "fp32", ADA, [measures["fits"]]) == []
    (complaint,) = broken(PLAIN, "fp32", ADA, [measures["spills"]])
    assert "centred_kernel spills" in complaint


def test_a_sum_in_the_place_of_a_dot_is_noticed(measures):
    assert broken(PRODUCT, "bf16", ADA, [measures["dot"]]) == []
    assert broken(PRODUCT, "bf16", ADA, [measures["sum for dot"]]) == [
        "no HMMA for products of bf16, only none on tensor cores"
    ]
    assert worse(measures["dot"], measures["sum for dot"])[0] == "dot_kernel lost its 32 HMMA"


def test_lost_vector_loads_are_noticed(measures):
    assert broken(PLAIN, "fp32", ADA, [measures["wide loads"]]) == []
    assert broken(PLAIN, "fp32", ADA, [measures["narrow loads"]]) == ["copy_kernel has no 128-bit loads"]
    assert broken(replace(PLAIN, narrow="a stride"), "fp32", ADA, [measures["narrow loads"]]) == []
    assert worse(measures["wide loads"], measures["narrow loads"])[0] == "copy_kernel lost its 1 LDG.128"


def test_a_loop_that_grows_is_noticed(measures):
    dot = measures["dot"]
    assert dot.loop < dot.instructions, "the loop is a part of the kernel"
    assert worse(dot, replace(dot, loop=int(1.05 * dot.loop))) == []
    (complaint,) = worse(dot, replace(dot, loop=int(1.05 * dot.loop) + 1))
    assert "its inner loop grew by" in complaint


def test_what_no_multiprocessor_has_is_noticed(measures):
    dot = measures["dot"]
    assert "shared memory" in broken(PRODUCT, "bf16", ADA, [replace(dot, shared=100 << 10)])[0]
    assert broken(PRODUCT, "bf16", ADA, [replace(dot, shared=99 << 10)]) == []
    assert any("tensor memory" in what for what in broken(PRODUCT, "bf16", HOPPER, [replace(dot, tensor_columns=1024)]))


def test_the_older_tensor_cores_will_not_do_for_hopper(measures):
    assert "no HGMMA" in broken(PRODUCT, "bf16", HOPPER, [measures["dot"]])[0]
    assert broken(replace(PRODUCT, few_rows=True), "bf16", HOPPER, [measures["dot"]]) == []


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0040*/              @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0050*/                   LDS.128 R4, [R2] ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0070*/                   STG.E.64 [R2.64], R4 ;
        /*0080*/                   LDGSTS.E.BYPASS.LTC128B.128 [R4], [R2.64] ;
        /*0090*/                   LDGSTS.E.LTC128B.64 [R4], [R2.64] ;
        /*00a0*/                   BRA `(.L_x_2) ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3) ;
        /*00c0*/                   NOP ;
"""


def test_sass_is_read():
    listing = parse(SASS)
    assert [len(body) for body in listing.loops()] == [4, 6]
    assert listing.counts() == {"HMMA": 3, "LDG.128": 1, "LDGSTS": 1, "LDGSTS.128": 1, "STG": 1}
    assert listing.hottest_loop(MMA) == 4, "the densest in products, not the longest"
    assert len(listing.instructions) == 12, "without the padding"
    assert Listing(listing.instructions[:1], {}).hottest_loop(MMA) == 1, "without a loop the whole kernel"


@pytest.mark.parametrize(
    ("opcode", "counted"),
    [
        ("LDG.E.ENL2.256", "LDG.128"),
        ("LDG.E.U16", "LDG"),
        ("UTMALDG.3D", "UTMALDG"),
        ("UTCQMMA.2CTA", "UTCQMMA"),
        ("MUFU.EX2.F16", "MUFU.EX2"),
        ("MUFU.RCP", None),
        ("LDS.128", None),
    ],
)
def test_opcodes_are_told_apart(opcode, counted):
    assert kind(opcode) == counted


def test_programs_at_once():
    assert programs_at_once(ADA, registers=255, warps=4, shared=0) == 2  # registers
    assert programs_at_once(ADA, registers=32, warps=4, shared=0) == 12  # warps
    assert programs_at_once(ADA, registers=32, warps=1, shared=0) == 24  # programs
    assert programs_at_once(ADA, registers=32, warps=4, shared=50 << 10) == 1  # shared memory
    assert programs_at_once(HOPPER, registers=33, warps=4, shared=0) == 12  # in lots of 256 a warp
    assert programs_at_once(HOPPER, registers=32, warps=4, shared=0, tensor_columns=256) == 2


@pytest.fixture(scope="module")
def table():
    return tables.load()


def test_the_table_holds_every_case(table):
    wanted = {f"{c.op}: {c.name}, {p}" for c in all_cases() if triton_of(c.op) for p in c.precisions}
    assert table.rows.keys() == wanted, "make aot-update"


@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_every_precision_of_every_op_is_built_or_refused(op, table):
    """What the capability record takes on some chip must have compiled for it, what it refuses says why."""
    implementation = triton_of(op)
    if implementation is None:
        pytest.skip(f"{op} has no Triton kernel")
    for precision, numbers in PRECISIONS["cuda"].items():
        if op == "quantize" and numbers.quantize_activations is None:
            continue  # never called
        rows = {
            name: row
            for name, row in table.rows.items()
            if name.startswith(f"{op}: ") and name.endswith(f", {precision}")
        }
        assert rows, f"no case of {op} in {precision}"
        for chip in CHIPS:
            with chip.recording():
                reasons = implementation.unsupported(Target(torch.device("meta"), numbers))
            for name, row in rows.items():
                made = row.launches[chip.name]
                if reasons:
                    assert made == "; ".join(reasons), name
                elif not chip.hip:
                    assert isinstance(made, list) and made, f"{name} on {chip.name}: {made}"


def test_fp8_is_refused_on_ampere_and_nowhere_else_of_nvidia(table):
    refused = {chip for row in table.rows.values() for chip, made in row.launches.items() if isinstance(made, str)}
    assert refused == {"sm_80", "gfx942"}
    assert table.rows["linear: 1.3B 32760 qkv, fp8"].launches["sm_80"] == (
        "e4m3 needs compute capability 8.9, the GPU has 8.0"
    )


def test_no_build_in_the_table_spills(table):
    builds = [(f"{name}, {chip}", m) for name, by in table.builds.items() for chip, m in by.items()]
    spilling = [name for name, m in builds if m.local or (m.spills and not name.endswith("gfx942"))]
    assert not spilling


def test_a_saved_table_is_the_table(table, tmp_path):
    tables.save(table, tmp_path / "table.json")
    assert tables.load(tmp_path / "table.json") == table
    assert (tmp_path / "table.json").read_text() == tables.FILE.read_text(), "written by hand?"


def test_the_pages_are_made_of_the_table(table):
    for path, text in pages.pages(table).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what the table says: make aot-update"
