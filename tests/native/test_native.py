"""The native CPU kernels below their ops: instruction sets, elementary functions, threads, the C interface."""

import ctypes
import dataclasses
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from kinema.ops import linear
from kinema.ops.attention import KV, BlockList
from kinema.ops.attention import cpu as attention_cpu
from kinema.ops.common import PRECISIONS, Quantized, Rope, Target, interrupts, native
from kinema.ops.conv3d import cpu as conv3d_cpu
from kinema.ops.conv3d import cpu_direct as conv3d_cpu_direct
from kinema.ops.linear import cpu as linear_cpu
from kinema.ops.norm_modulate import Norm
from kinema.ops.norm_modulate import cpu as norm_modulate_cpu
from kinema.ops.patch_embed import cpu as patch_embed_cpu
from kinema.ops.qk_norm_rope import HeadNorm
from kinema.ops.qk_norm_rope import cpu as qk_norm_rope_cpu
from kinema.ops.scheduler_step import cpu as scheduler_step_cpu
from kinema.ops.unpatchify import cpu as unpatchify_cpu

HEADER = Path(__file__).parents[2] / "csrc" / "include" / "kinema.h"
CPU = PRECISIONS["cpu"]
# structs of the header, and their mirrors
MIRRORS = {
    "kinema_attention_args": attention_cpu.AttentionArguments,
    "kinema_control": interrupts.Control,
    "kinema_conv3d_args": conv3d_cpu.Conv3dArguments,
    "kinema_norm": norm_modulate_cpu.NormArguments,
    "kinema_linear_args": linear_cpu.LinearArguments,
    "kinema_norm_modulate_args": norm_modulate_cpu.NormModulateArguments,
    "kinema_patch_embed_args": patch_embed_cpu.PatchEmbedArguments,
    "kinema_qk_norm_rope_args": qk_norm_rope_cpu.QkNormRopeArguments,
    "kinema_scheduler_step_args": scheduler_step_cpu.SchedulerStepArguments,
    "kinema_unpatchify_args": unpatchify_cpu.UnpatchifyArguments,
}

USUAL = pytest.mark.usual
needs_library = pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")


_spec = importlib.util.spec_from_file_location("native_tables", Path(__file__).parents[1] / "native_tables.py")
native_tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native_tables)


def of(called):
    """What a test that asks for `isa` calls, as native_tables names it: "" is what no macro of theirs has a part in."""

    def mark(test):
        test.called = called
        return test

    return mark


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        called = getattr(metafunc.function, "called", "")
        metafunc.parametrize("isa", native_tables.tables(called), indirect=True)


@pytest.fixture
def isa(request):
    with native.forced(request.param):
        yield request.param


def target(precision: str) -> Target:
    return Target(torch.device("cpu"), CPU[precision])


def random(*shape, seed=0, std=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


# ---- which kernels run


@of("linear")
@needs_library
def test_the_portable_kernels_are_always_there(isa):
    assert native.instruction_sets()[-1] == "portable"
    assert native.cpu().isa == isa


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


DOCTOR = "from kinema.cli.main import main; main(['doctor'])"


def test_where_the_library_can_be_built_it_is_there():
    """Or every other test of it would be skipped and none would say so."""
    if shutil.which("cmake") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no CMake or no C++ compiler")
    assert native.instruction_sets(), "the native kernels are missing or old: make native"


@USUAL
@needs_library
def test_an_instruction_set_can_be_forced():
    code = "from kinema.ops.common import native; print(native.cpu().isa)"
    assert run(code, KINEMA_CPU_ISA="portable") == "portable\n"


@USUAL
@needs_library
def test_an_instruction_set_that_is_not_there_is_a_reason_that_names_the_known():
    report = run(DOCTOR, KINEMA_CPU_ISA="altivec")
    assert re.search(
        r"linear .*\n( +not \S+: .*\n)*? +not cpu: KINEMA_CPU_ISA=altivec: .* wanted one of .*portable", report
    )


@USUAL
def test_without_the_library_doctor_says_what_to_do(tmp_path):
    run_here = f"from kinema.ops.common import native; native.LIBRARY = native.Path({str(tmp_path / 'none.so')!r})\n"
    report = run(run_here + DOCTOR, KINEMA_CPU_LIBRARY="")
    assert "not cpu: the native kernels are not built: install a C++ compiler and CMake, then kinema again" in report


@pytest.mark.parametrize("kind", ["foreign", "missing", "a pipe", "a folder", "text"])
def test_a_library_that_is_not_ours_is_a_reason(tmp_path, monkeypatch, kind):
    """Another one has no such functions; opening a pipe would wait for a writer."""
    path = Path(torch._C.__file__) if kind == "foreign" else tmp_path / "x.so"
    make = {"a pipe": os.mkfifo, "a folder": os.mkdir, "text": lambda path: path.write_text("text")}
    make.get(kind, lambda path: None)(path)
    monkeypatch.setattr(native, "LIBRARY", path)
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
    library, reason = native._load.__wrapped__()
    assert library is None and reason.startswith("the native kernels do not load: ")
    assert f"({native.LIBRARY_VARIABLE}={path})" in reason


@USUAL
def test_a_library_of_another_interface_is_not_called(tmp_path):
    compiler = os.environ.get("CXX", "c++")
    source = tmp_path / "old.cpp"
    source.write_text('extern "C" int kinema_abi_version() { return 0; }\n')
    try:
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", tmp_path / "old.so"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C++ compiler")
    report = run(DOCTOR, KINEMA_CPU_LIBRARY=str(tmp_path / "old.so"), LD_PRELOAD="")
    assert "not cpu: the native kernels are of interface 0, wanted" in report


def test_the_macros_of_instruction_sets_are_where_they_were():
    """Or tests/native_tables.py leaves out tables that differ: write there what asks for a macro now, then here."""
    sources = sorted(HEADER.parents[1].rglob("*.h"))

    def naming(pattern):
        return {path.name for path in sources if re.search(pattern, path.read_text())}

    assert naming("__AVX512VNNI__") == {"simd_avx512.h"}
    assert naming("__AVX512BF16__") == {
        *("gemm.h", "linear.h", "panels.h", "probe.h", "simd_avx512.h"),
        *("rows.h", "attention_bf16.h"),  # qk_norm_rope's result, and attention of it
    }
    vectors = {"simd_avx512.h", "simd_portable.h", "simd_avx2.h", "i8_maddubs.h"}
    # in a table's own words (kernels.h) and in a measurement (probe.h): neither is an op
    assert naming(r"\b(multiply_i8|CODE_MAX|I8_ROWS|I8_LANES)\b") - vectors == {
        *("micro.h", "gemm.h", "linear.h", "kernels.h", "probe.h"),  # a product of codes is linear's alone
        *("attention.h", "attention_i8.h"),
    }
    assert naming(r"\b(BF16_GROUP|Bf16Pairs)\b") - vectors == {
        *("panels.h", "linear.h", "bf16.h", "kernels.h", "attention_bf16.h"),
    }
    fp32 = {path.name for path in sources if "p.dtype = KINEMA_F32;" in path.read_text()}
    assert fp32 == {"conv3d.h", "patches.h"}, "the other products of gemm.h are of fp32"


# ---- the C interface


@pytest.mark.parametrize("name", MIRRORS)
def test_a_struct_of_arguments_is_the_one_of_the_header(name):
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    (body,) = re.findall(rf"typedef struct {name} \{{(.*?)\}} {name};", text, flags=re.DOTALL)
    wanted = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.fullmatch(r"((?:const )?\w+)\s+(.*)", declaration, flags=re.DOTALL).groups()
        for part in names.split(","):
            pointer, field, count = re.fullmatch(r"\s*((?:\*|const|\s)*)(\w+)(?:\[(\d)\])?", part).groups()
            types = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float}
            types |= {"kinema_norm": norm_modulate_cpu.NormArguments, "kinema_poll": ctypes.c_void_p}
            single = ctypes.c_void_p if "*" in pointer else types[kind]
            wanted.append((field, single * int(count) if count else single))
    assert list(MIRRORS[name]._fields_) == wanted


def test_the_version_of_the_interface_is_the_one_of_the_header():
    assert int(re.search(r"#define KINEMA_ABI_VERSION (\d+)", HEADER.read_text())[1]) == native.ABI_VERSION


@needs_library
def test_what_makes_no_sense_is_refused_with_a_sentence():
    arguments = linear_cpu.LinearArguments(batch=1, tokens=1, out_features=1)
    with pytest.raises(ValueError, match="a size is negative or does not fit"):
        native.cpu().call("kinema_linear", arguments)
    arguments.in_features = arguments.x_features = 1
    with pytest.raises(ValueError, match="a pointer that is needed is null"):
        native.cpu().call("kinema_linear", arguments)


@needs_library
@pytest.mark.parametrize(
    "field, value, reason",
    [
        ("x2", "some", "no such value"),
        ("x_dtype", native.I8, "number format"),
        ("kind", 3, "no such value"),
        ("scale", "some", "a size is negative"),
    ],
)
def test_a_norm_that_makes_no_sense_is_refused(field, value, reason):
    some = torch.zeros(64)
    norm = norm_modulate_cpu.NormArguments(kind=norm_modulate_cpu.NORMS["layer"])  # a scale would be of 0 tokens
    arguments = linear_cpu.LinearArguments(batch=1, tokens=1, in_features=1, x_features=1, out_features=1)
    arguments.norm = ctypes.addressof(norm)
    for name in ("x", "weight", "out", "workspace"):
        setattr(arguments, name, some.data_ptr())
    assert native.cpu().ask("kinema_linear_workspace", arguments) > 0, "so far it is a call"
    where = norm if field in ("kind", "scale") else arguments
    setattr(where, field, some.data_ptr() if value == "some" else value)
    with pytest.raises(ValueError, match=reason):
        native.cpu().call("kinema_linear", arguments)


@needs_library
def test_attention_in_what_there_is_not_is_refused():
    some = torch.zeros(4)
    arguments = attention_cpu.AttentionArguments(heads=1, head_dim=4, query_segments=1, key_segments=1, quantize=2)
    for name in ("q", "out", "k", "v"):
        getattr(arguments, name)[0] = some.data_ptr()
    with pytest.raises(ValueError, match="option"):
        native.cpu().call("kinema_attention", arguments)


def test_attention_in_bf16_is_refused_without_its_products(isa):
    """By the interface: the op widens what it is given first."""
    arguments = attention_cpu.AttentionArguments(heads=1, head_dim=4, query_segments=1, key_segments=1, qk_dtype=1)
    if native.multiplies_bf16():
        native.cpu().call("kinema_attention", arguments)  # of no samples
        return
    for call in (native.cpu().call, lambda _, given: native.cpu().ask("kinema_attention_workspace", given)):
        with pytest.raises(ValueError, match="number format"):
            call("kinema_attention", arguments)


@of("attention_int8")
@pytest.mark.parametrize("kind", [None, "int8"])
def test_attention_over_an_empty_cache_is_that_over_the_new_keys(isa, kind):
    """The first block of a streamed video; and without any keys a query gives 0, or its residual."""
    q, k, v, residual = random(2, 3, 7, 10), random(2, 3, 9, 10, seed=1), random(2, 3, 9, 10, seed=2), random(2, 7, 30)
    empty = KV(k[:, :, :0], v[:, :, :0])
    (alone,) = attention_cpu.attention(q, KV(k, v), quantize=kind)
    for segments in ((empty, KV(k, v)), (KV(k, v), empty), (empty, KV(k, v), empty)):
        (y,) = attention_cpu.attention(q, segments, quantize=kind)
        assert torch.equal(y, alone)
    (nothing,) = attention_cpu.attention(q, (empty, empty), quantize=kind)
    assert not nothing.any()
    (kept,) = attention_cpu.attention(q, empty, residual=residual, quantize=kind)
    assert torch.equal(kept, residual)


def test_a_list_without_room_names_no_tile(isa):
    q, k, v = random(1, 2, 7, 10), random(1, 2, 9, 10, seed=1), random(1, 2, 9, 10, seed=2)
    none = BlockList(4, 4, torch.zeros(1, 1, 2, 0, dtype=torch.int32), torch.zeros(1, 1, 2, dtype=torch.int32))
    (y,) = attention_cpu.attention(q, KV(k, v), blocks=none)
    assert not y.any()


@of("attention_int8")
@pytest.mark.parametrize("kind", [None, "int8"])
def test_attention_reads_no_scratch_that_it_has_not_written(isa, kind, monkeypatch):
    """And writes none behind what it asked for. Odd sizes, a rotation on read, a length, and keys in three packs."""
    q, k, v = (random(1, 2, count, 22, seed=i) for i, count in enumerate((70, 1100, 1100)))
    rope = Rope.from_positions(torch.arange(1100)[:, None], (22,))
    kv = KV(k, v, torch.tensor([1037]), rope)
    (plain,) = attention_cpu.attention(q, kv, quantize=kind)
    held = []

    def poisoned(count):
        held.append(torch.full((count // 4 + 64,), float("nan")))
        return held[0][-held[0].data_ptr() % 64 // 4 :].data_ptr()

    monkeypatch.setattr(attention_cpu, "workspace", poisoned)
    (y,) = attention_cpu.attention(q, kv, quantize=kind)
    assert torch.equal(y, plain)
    assert bool(held[0][-48:].isnan().all()), "written behind its end"


# ---- elementary functions


def every_size() -> torch.Tensor:
    """Both signs, every exponent, and mantissas in between; a count that no vector divides."""
    mantissa = 1 + torch.arange(511, dtype=torch.float64) / 511
    sizes = (mantissa[None] * 2.0 ** torch.arange(-40, 14, dtype=torch.float64)[:, None]).flatten()
    dense = torch.linspace(-110, 110, 100_003, dtype=torch.float64)
    return torch.cat((sizes, -sizes, dense, torch.zeros(1, dtype=torch.float64))).float()


def native_exp(x: torch.Tensor) -> torch.Tensor:
    kernels, y = native.cpu(), torch.full_like(x, float("nan"))
    kernels.check(kernels.library.kinema_exp(kernels.handle, x.numel(), x.data_ptr(), y.data_ptr()))
    return y


def native_activation(name: str, x: torch.Tensor) -> torch.Tensor:
    kernels, y = native.cpu(), torch.full_like(x, float("nan"))
    code = native.ACTIVATIONS[name]
    kernels.check(kernels.library.kinema_activate(kernels.handle, code, x.numel(), x.data_ptr(), y.data_ptr()))
    return y


def test_the_exponential_is_right_within_an_ulp(isa):
    x = every_size()
    y, truth = native_exp(x).double(), x.double().exp()
    whole = (x >= -87.3) & (x <= 88.72)
    ulp = 2.0 ** (torch.frexp(truth[whole]).exponent.double() - 24)
    # without fused multiply-add the reduction rounds once more
    assert float(((y - truth).abs()[whole] / ulp).max()) <= (2.0 if isa == "portable" else 1.0)
    assert bool((y[x > 88.73] == float("inf")).all())
    assert float(y[x < -87.3].max()) < 1.3e-38 and float(y[x < -87.3].min()) >= 0


def test_the_exponential_of_what_is_not_a_number(isa):
    y = native_exp(torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0]))
    assert bool(y[0].isnan()) and y[1] == float("inf") and 0 <= y[2] < 1.3e-38 and y[3] == 1


ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * torch.erfc(-x * 0.5**0.5),
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": lambda x: x * torch.sigmoid(x),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_right_within_two_ulps_of_its_argument(isa, name):
    x = every_size()
    y, truth = native_activation(name, x).double(), ACTIVATIONS[name](x.double())
    ulp = x.abs().double() * torch.finfo(torch.float32).eps + 1e-37
    assert float(((y - truth).abs() / ulp).max()) <= 2.0
    assert bool(native_activation(name, torch.tensor([float("nan")])).isnan())


@pytest.mark.parametrize("name", ["gelu_tanh", "quick_gelu", "silu"])
def test_an_activation_far_below_zero_needs_no_subnormal_numbers(isa, name):
    """What x is multiplied by: they cost a hundred cycles each, and a trained model's hidden layer has many such x."""
    x = torch.linspace(-1000, -5, 5001)
    factor = native_activation(name, x).double() / x.double()
    assert float(factor.min()) >= torch.finfo(torch.float32).tiny


# ---- linear beyond one block of rows, depth and columns


@of("linear")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-rounded", "fp16", "fp8", "fp8-rounded", "int8"])
def test_large_products(isa, precision):
    """Of bf16 and e4m3 also as an instruction set does it that does not choose to: with x rounded, or as it is."""
    precision, _, rounded = precision.partition("-")
    rows, depth, columns = 293, 1030 if precision == "int8" else 530, 803
    x, w, bias = random(1, rows, depth), random(columns, depth, seed=1), random(columns, seed=2)
    packed = linear_cpu.pack_linear(w, bias, target=target(precision))
    if precision in ("bf16", "fp8"):
        packed = dataclasses.replace(packed, quantize=bool(rounded))
    read = x.double() if packed.rounds_to is None else x.to(packed.rounds_to).double()
    if packed.code_top is not None:
        low, high = read.amin(-1, keepdim=True), read.amax(-1, keepdim=True)
        scale = ((high - low) / packed.code_top).float().double()
        zero, steps = (-low / scale).round(), read / scale
        between = (steps - 1e-4).round() != (steps + 1e-4).round()  # its last bit decides
        x, steps = x.masked_fill(between, 0.0), steps.masked_fill(between, 0.0)
        read = ((steps.round() + zero).clamp(0, packed.code_top) - zero) * scale
    y = linear_cpu.linear(x, packed, out=torch.full((1, rows, columns), float("nan")))
    plain = linear.reference.pack_linear(w, bias, target=target(precision))
    stored = plain.weight.double() * (1.0 if plain.scale is None else plain.scale.double()[:, None])
    truth = read @ stored.T + bias.double()
    size = read.abs() @ stored.T.abs() + bias.double().abs()
    assert float(((y.double() - truth) / size).abs().max()) < 4 * torch.finfo(torch.float32).eps


def test_errors_do_not_grow_with_the_depth(isa):
    """Slices are summed by themselves: one sum over 8960 features would err four times as much."""

    def error(depth):
        x, w = random(1, 12, depth), random(32, depth, seed=1)
        truth = x.double() @ w.double().T
        y = linear_cpu.linear(x, linear_cpu.pack_linear(w, target=target("fp32")))
        return float((y.double() - truth).norm() / truth.norm())

    assert error(8960) <= 1.5 * error(256)


@of("linear")
def test_int8_codes_do_not_saturate(isa):
    """The highest code times ±127 everywhere: sums of two such products are what 16 bits may not hold."""
    depth, columns = 1028, 33
    pairs = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    x = torch.cat((pairs, -pairs)).repeat(1, depth // 2)[None]  # codes of 0 and the top, whichever of them is zero
    w = 127.0 * torch.where(torch.arange(columns * depth).view(columns, depth) % 3 == 0, -1.0, 1.0)
    w[:3] = 127.0 * torch.tensor([[1.0], [-1.0], [0.0]])
    truth = x.double() @ w.double().T
    y = linear_cpu.linear(x, linear_cpu.pack_linear(w, target=target("int8")))
    assert float((y - truth).abs().max()) <= 4 * torch.finfo(torch.float32).eps * 127 * depth


@of("linear")
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_no_number_is_not_rounded_to_one(isa, odd):
    x, w = random(1, 9, 50), random(21, 50, seed=1)
    packed = linear_cpu.pack_linear(w, target=target("int8"))
    plain = linear_cpu.linear(x, packed)
    x[0, 4, 37] = odd
    y = linear_cpu.linear(x, packed)
    assert not bool(y[0, 4].isfinite().any())
    others = [token for token in range(9) if token != 4]
    assert torch.equal(y[0, others], plain[0, others])


@of("linear")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_token_that_is_no_number_spoils_no_other_through_its_norm(isa, precision):
    x, packed = random(1, 9, 50), linear_cpu.pack_linear(random(21, 50, seed=1), target=target(precision))
    plain = linear_cpu.linear(x, packed, norm=Norm(1e-6))
    x[0, 4, 37] = float("nan")
    y = linear_cpu.linear(x, packed, norm=Norm(1e-6))
    assert bool(y[0, 4].isnan().all())
    others = [token for token in range(9) if token != 4]
    assert torch.equal(y[0, others], plain[0, others])


def test_a_norm_has_the_weights_of_its_channels(isa):
    packed = linear_cpu.pack_linear(torch.ones(1, 5), target=target("fp32"))
    with pytest.raises(ValueError, match=r"weight is torch.float32 of shape \(4,\).* wanted floats of shape \(5,\)"):
        linear_cpu.linear(torch.ones(1, 1, 5), packed, norm=Norm(1e-6, weight=torch.ones(4)))


@of("linear")
def test_more_codes_than_add_up_in_32_bits_are_refused(isa):
    features = 65794
    packed = linear_cpu.pack_linear(torch.ones(1, features), target=target("int8"))
    with pytest.raises(ValueError, match="size"):
        linear_cpu.linear(torch.ones(1, 1, features), packed)


@of("linear")
def test_given_int8_does_not_saturate(isa):
    """127·127 everywhere, of every pattern of signs."""
    depth, columns = 1028, 33
    signs = torch.tensor(list(itertools.product((-1, 1), repeat=2))).repeat(2, 1)
    x = (127 * signs.repeat(1, depth // 2)).to(torch.int8)[None]
    w = 127.0 * torch.where(torch.arange(columns * depth).view(columns, depth) % 3 == 0, -1.0, 1.0)
    packed = linear_cpu.pack_linear(w, target=target("int8"))
    y = linear_cpu.linear(Quantized(x, torch.ones(1, x.shape[1], 1)), packed)
    assert torch.equal(y, (x.double() @ w.double().T).float())


@pytest.mark.parametrize(("outputs", "width"), [(3, 61), (33, 61), (67, 61), (16, 24)])
@pytest.mark.parametrize("stride", [1, 2])
def test_wide_convolutions(isa, outputs, width, stride):
    """Few output channels are convolved where the pixels lie, many through packed blocks."""
    x, w, bias = random(2, 7, 3, 6, width), random(outputs, 7, 2, 3, 3, seed=1), random(outputs, seed=2)
    options = {"stride": (1, stride, stride), "target": target("fp32")}
    y = conv3d_cpu.conv3d(x, conv3d_cpu.pack_conv3d(w, bias, **options), activation="silu")
    seen = torch.nn.functional.pad(torch.nn.functional.silu(x.double()), (1, 1, 1, 1, 1, 0))
    truth = torch.nn.functional.conv3d(seen, w.double(), bias.double(), stride=(1, stride, stride))
    assert float((y - truth).abs().max() / truth.abs().max()) < 1e-6


def convolved(x, weight, bias, norm, past, residual, upsample):
    """conv3d in float64 by torch, and what it leaves as the past."""
    root = x.shape[1] ** 0.5
    h = torch.nn.functional.normalize(x.double(), dim=1) * root * norm.double()[:, None, None, None]
    h = torch.nn.functional.silu(h)
    h = h.repeat_interleave(upsample, 3).repeat_interleave(upsample, 4)
    h = torch.cat((past.double(), h), dim=2)
    y = torch.nn.functional.conv3d(h, weight.double(), bias.double(), padding=(0, 1, 1))
    return y + residual.double(), h[:, :, h.shape[2] - past.shape[2] :]


# (Cin, Cout, kt, frames, height, width, upsample): all that a band, a block and a group of tiles can leave over
LARGE = [
    (24, 17, 3, 6, 131, 83, 1),  # bands in two parts of the frames
    (10, 33, 2, 5, 37, 26, 1),
    (20, 70, 1, 5, 33, 47, 2),  # doubled
    (10, 5, 3, 2, 9, 7, 2),  # doubled with a past, which is of the doubled frame
    (130, 18, 3, 1, 12, 11, 1),  # two slices of the depth
    (8, 400, 1, 1, 3, 3, 1),  # more columns than wait together
    (16, 3, 3, 4, 70, 131, 1),  # few outputs: bands, and a last tile that is not whole
    (9, 2, 2, 3, 11, 64, 1),  # whole tiles
    (5, 1, 3, 1, 9, 45, 2),
]


# a kernel of one frame has no past
PASTS = [
    *(("random", *size) for size in LARGE),
    *(pytest.param(past, *size, marks=USUAL) for past in ("silent above", "silent") for size in LARGE if size[2] > 1),
]


@pytest.mark.parametrize(("past", "into", "out", "taps", "frames", "height", "width", "upsample"), PASTS)
def test_convolutions_of_large_pictures(isa, threads, past, into, out, taps, frames, height, width, upsample):
    """Where pictures are cut; results and caches are the same on any number of threads."""
    x, norm = random(2, into, frames, height, width), 0.5 + random(into, seed=3).abs()
    weight, bias = random(out, into, taps, 3, 3, seed=1, std=(9 * taps * into) ** -0.5), random(out, seed=2)
    before = random(2, into, taps - 1, height * upsample, width * upsample, seed=4)
    if past != "random":
        before[:, :, :1, : before.shape[3] if past == "silent" else before.shape[3] // 2] = 0
    residual = random(2, out, frames, height * upsample, width * upsample, seed=5)
    truth, after = convolved(x, weight, bias, norm, before, residual, upsample)
    for tile in (4, 2, 0) if out > conv3d_cpu.FEW_OUTPUTS else (0,):
        packed = conv3d_cpu._pack(weight, bias, (1, 1, 1), (1, 1, 1, 1), winograd=tile)
        results = []
        for count in (1, 3):
            threads(count)
            cache, y = before.clone(), torch.full_like(residual, float("nan"))
            given = {"norm": norm, "activation": "silu", "upsample": upsample, "residual": residual, "cache": cache}
            conv3d_cpu.conv3d(x, packed, out=y, **given)
            assert float((y - truth).abs().max() / truth.abs().max()) < 2e-6, tile
            assert taps == 1 or float((cache - after).abs().max() / after.abs().max()) < 1e-6, tile
            results.append((y, cache))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), tile


@pytest.mark.parametrize("tile", [4, 2])
def test_a_large_weight_is_read_for_more_tiles(isa, threads, tile):
    """Of 10 and 22 MB: its blocks hold more groups of tiles than others' do, and more scratch."""
    x, weight = random(1, 224, 2, 31, 30), random(224, 224, 3, 3, 3, seed=1, std=(27 * 224) ** -0.5)
    directly = conv3d_cpu.conv3d(x, conv3d_cpu._pack(weight, None, (1, 1, 1), (1, 1, 1, 1), winograd=0))
    packed = conv3d_cpu._pack(weight, None, (1, 1, 1), (1, 1, 1, 1), winograd=tile)
    results = []
    for count in (1, 3):
        threads(count)
        results.append(conv3d_cpu.conv3d(x, packed))
    assert float((results[0] - directly).abs().max() / directly.abs().max()) < 5e-6  # F(4×4): 2.5e-6
    assert torch.equal(*results)


def test_what_is_summed_directly(isa):
    """Winograd is for 3×3 kernels without strides, of channels enough on both sides, and not for `cpu-direct`: large
    tiles for kernels over time that are not large."""

    def transformed(pack, *shape, **options):
        return pack(random(*shape), target=target("fp32"), **options).winograd

    assert transformed(conv3d_cpu.pack_conv3d, 4, 8, 3, 3, 3) == 4
    assert transformed(conv3d_cpu.pack_conv3d, 4, 8, 1, 3, 3) == 2
    assert transformed(conv3d_cpu.pack_conv3d, 256, 192, 3, 3, 3) == 2
    assert not transformed(conv3d_cpu.pack_conv3d, 3, 8, 3, 3, 3)
    assert not transformed(conv3d_cpu.pack_conv3d, 8, 3, 3, 3, 3)
    assert not transformed(conv3d_cpu.pack_conv3d, 8, 8, 3, 1, 1)
    assert not transformed(conv3d_cpu.pack_conv3d, 8, 8, 1, 3, 3, stride=(1, 2, 2))
    assert not transformed(conv3d_cpu_direct.pack_conv3d, 8, 8, 3, 3, 3)
    arguments = conv3d_cpu.Conv3dArguments()
    for name, _ in conv3d_cpu.Conv3dArguments._fields_[:6]:
        setattr(arguments, name, 8)
    for name in ("kernel_t", "kernel_h", "kernel_w", "stride_t", "stride_h", "stride_w", "upsample"):
        setattr(arguments, name, 1)
    some = torch.zeros(4)
    for name in ("x", "weight", "out", "workspace"):
        setattr(arguments, name, some.data_ptr())
    for tile, reason in ((2, "a size is negative or does not fit"), (4, "a size"), (3, "an option has no such value")):
        arguments.winograd = tile
        with pytest.raises(ValueError, match=reason):
            native.cpu().call("kinema_conv3d", arguments)


@pytest.mark.parametrize(
    "kernel",
    [(64, 32, 3, 3, 3), (224, 192, 3, 3, 3), (64, 32, 1, 3, 3), (64, 8, 3, 3), (64, 32, 3, 1, 1), (64, 4, 3, 3)],
)
def test_the_size_of_a_packed_kernel_is_known_before(isa, kernel):
    packed = conv3d_cpu.pack_conv3d(random(*kernel), target=target("fp32"))
    assert packed.panels.nbytes == conv3d_cpu.packed_bytes(kernel)


# ---- threads


@pytest.fixture
def threads():
    """Sets how many threads ops use."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# few rows, whose columns are shared; blocks of rows; several for each thread, the last of them cut
@of("linear")
@pytest.mark.parametrize("rows, into, out", [(3, 300, 211), (293, 300, 211), (601, 40, 1601)])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_results_do_not_depend_on_the_threads(isa, threads, precision, rows, into, out):
    x, w = random(1, rows, into), random(out, into, seed=1)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        packed = linear_cpu.pack_linear(w, target=target(precision))
        results.append(linear_cpu.linear(x, packed, activation="gelu_tanh"))
    assert all(torch.equal(result, results[0]) for result in results)


@of("linear")
@pytest.mark.parametrize("rows, into, out", [(3, 300, 211), (293, 300, 211), (601, 40, 1601), (20, 1545, 70)])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int8"])
def test_a_norm_is_that_of_its_op_whatever_the_threads(isa, threads, precision, rows, into, out):
    """To the last bit: rows are normed once for each range of columns, a slice of the depth at a time."""
    x, w, row = random(1, rows, into, std=3.0), random(out, into, seed=1), random(into, seed=2)
    table = random(1, rows, 2, into, seed=3)
    packed = linear_cpu.pack_linear(w, target=target(precision))
    norms = (
        Norm(1e-6, scale=table[:, :, 0], shift=table[:, :1, 1]),
        Norm(1e-6, weight=row, bias=row.flip(0)),
        Norm(1e-6, "rms", weight=row, shift=table[:, :, 1]),
    )
    for norm in norms:
        options = dataclasses.asdict(norm)
        n = norm_modulate_cpu.norm_modulate(x, norm=options.pop("kind"), **options)
        wanted = linear_cpu.linear(n, packed, activation="silu")
        for count in (1, 2, 7):
            threads(count)
            got = torch.full_like(wanted, float("nan"))
            linear_cpu.linear(x, packed, norm=norm, activation="silu", out=got)
            assert torch.equal(got, wanted)


@needs_library
def test_two_callers_at_once(threads):
    threads(2)
    x, packed = random(1, 200, 64), linear_cpu.pack_linear(random(96, 64, seed=1), target=target("fp32"))
    wanted, wrong = linear_cpu.linear(x, packed), []

    def call():
        for _ in range(50):
            if not torch.equal(linear_cpu.linear(x, packed), wanted):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@needs_library
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    x, packed = random(1, 200, 64), linear_cpu.pack_linear(random(96, 64, seed=1), target=target("fp32"))
    wanted = linear_cpu.linear(x, packed)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(linear_cpu.linear(x, packed), wanted) else 1)
    for _ in range(400):  # a child that waits for its parent's threads waits for ever
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert os.waitstatus_to_exitcode(status) == 0


@needs_library
def test_weights_that_want_gradients_are_refused():
    weight = random(8, 6).requires_grad_()
    with pytest.raises(ValueError, match="no gradients"):
        linear_cpu.pack_linear(weight, target=target("fp32"))
    with pytest.raises(ValueError, match="no gradients"):
        conv3d_cpu.pack_conv3d(random(8, 6, 1, 1, 1).requires_grad_(), target=target("fp32"))
    with torch.no_grad():
        linear_cpu.pack_linear(weight, target=target("fp32"))


@needs_library
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_codes_for_a_weight_that_is_none_are_refused(kind):
    precision = dataclasses.replace(CPU["bf16"], quantize_activations=kind)
    with pytest.raises(ValueError, match=f"activations in {kind} of a weight in torch.bfloat16: wanted int8"):
        linear_cpu.pack_linear(random(8, 6), target=Target(torch.device("cpu"), precision))


@needs_library
def test_a_step_takes_a_window_of_a_longer_clip():
    clip, noise, factors = random(2, 4, 9, 5), random(2, 4, 3, 5, seed=1), random(2, 1, 2, seed=2)
    window = clip[:, :, 2:5]
    (got,) = scheduler_step_cpu.scheduler_step([window, noise], factors)
    wanted = factors[:, :, 0].view(2, 1, 1, 1) * window + factors[:, :, 1].view(2, 1, 1, 1) * noise
    assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beside", [0, 1])
def test_large_steps_go_past_the_caches(isa, beside):
    """Results that no cache holds are streamed to memory where a vector of theirs can be, and they may be terms."""
    count = 1_100_003  # of each of two results: more than 8 MB
    terms = [random(1, count + beside, seed=k)[:, beside:] for k in range(3)]
    factors = random(1, 2, 3, seed=3)
    wanted = torch.einsum("mk,ks->ms", factors[0].double(), torch.cat(terms).double())
    first, second = scheduler_step_cpu.scheduler_step(terms, factors, out=[terms[0], torch.empty(1, count)])
    assert first.data_ptr() == terms[0].data_ptr()
    assert torch.allclose(torch.cat((first, second)).double(), wanted, rtol=1e-6, atol=1e-5)


@USUAL
def test_torchs_threads_do_none_of_the_work():
    """They spin, and meet at barriers: beside a busy program each call would wait for one that is not running."""
    code = """
import os, torch
from kinema.ops.common import PRECISIONS, Target
from kinema.ops.common.threads import using_threads
from kinema.ops.linear import cpu
before = len(os.listdir("/proc/self/task"))
target = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])
packed = cpu.pack_linear(torch.ones(96, 64, dtype=torch.float32), target=target)
x = torch.ones(1, 200, 64, dtype=torch.float32)
with using_threads(1):
    cpu.linear(x, packed)
alone = len(os.listdir("/proc/self/task"))
with using_threads(3):
    cpu.linear(x, packed)
own = len(os.listdir("/proc/self/task"))
with using_threads(3):
    square = torch.ones(400, 400, dtype=torch.float32)
    square @ square
    torch.ones(200_000, dtype=torch.float32).add_(1)
print(alone - before, own - before, len(os.listdir("/proc/self/task")) - own)
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted in /proc")
    assert run(code) == "0 2 2\n"


def test_whose_threads_they_are_does_not_matter(isa, threads, lend):
    threads(2)
    x, packed = random(1, 700, 300), linear_cpu.pack_linear(random(96, 300, seed=1), target=target("fp32"))
    own = linear_cpu.linear(x, packed)
    lend(True)
    assert torch.equal(linear_cpu.linear(x, packed), own)


def test_a_program_in_c(tmp_path):
    """docs/embedding.md: the header, the library, and nothing of Python."""
    if not native.instruction_sets() or "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the native kernels are not built, or built to be watched")
    compiler = os.environ.get("CC", "cc")
    library, program = native.LIBRARY.resolve(), tmp_path / "embed"
    links = [library, f"-Wl,-rpath,{library.parent}", "-lm"]
    options = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}"]
    try:
        subprocess.run([compiler, *options, Path(__file__).with_name("embed.c"), "-o", program, *links], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    for isa in native.instruction_sets():
        done = subprocess.run([program, isa], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith(f"{isa}, interface {native.ABI_VERSION}: largest error")
    assert (
        "no kernels for that instruction set"
        in subprocess.run([program, "none"], capture_output=True, text=True).stderr
    )


@of("attention_int8")
def test_no_op_depends_on_the_threads(isa, threads):
    """Attention, convolution and rows: enough of each for several tasks."""
    q, k, v = (random(1, 2, count, 20, seed=i) for i, count in enumerate((230, 1100, 1100)))
    video = random(1, 5, 4, 30, 21, seed=3)
    weight = conv3d_cpu.pack_conv3d(random(19, 5, 3, 3, 3, seed=4), target=target("fp32"))
    tokens, terms = random(1, 300, 120, seed=5), [random(2, 5000, seed=i) for i in (6, 7)]
    results = []
    for count in (1, 2, 5):
        threads(count)
        (attended,), (rounded,) = (attention_cpu.attention(q, KV(k, v), quantize=kind) for kind in (None, "int8"))
        normed = norm_modulate_cpu.norm_modulate(tokens, eps=1e-6, quantize="int8")
        turned = qk_norm_rope_cpu.qk_norm_rope(tokens, 4, norm=HeadNorm("rms", 1e-6))
        (stepped,) = scheduler_step_cpu.scheduler_step(terms, torch.ones(2, 1, 2))
        seen = conv3d_cpu.conv3d(video, weight, activation="silu", cache=torch.zeros(1, 5, 2, 30, 21))
        results.append((attended, rounded, normed.data, normed.scale, turned, stepped, seen))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def test_attention_packs_its_arguments_as_the_struct_has_them():
    arguments, layout = attention_cpu.AttentionArguments(), attention_cpu._LAYOUT
    assert layout.size == ctypes.sizeof(arguments)
    layout.pack_into(arguments, 0, *range(1, 85), 0.5, *range(85, 91))
    assert list(arguments.q_stride_b) == [8, 9] and arguments.residual == 22
    assert list(arguments.k) == [25, 26, 27] and list(arguments.rope_tokens) == [67, 68, 69]
    assert (arguments.key_tile, arguments.workspace, arguments.scale) == (83, 84, 0.5)
    assert (list(arguments.interleaved), arguments.qk_dtype, arguments.threads) == ([85, 86, 87], 89, 90)
