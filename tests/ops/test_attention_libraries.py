"""Libraries under `attention`: which the plan takes where and why, and that each call goes to who can do it.

FlashAttention runs on GPUs alone: stand-ins with its signatures and demands take its place, and the contract's own
cases are what is called.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kinema.cli import doctor
from kinema.errors import UnsupportedError
from kinema.ops import plan_ops
from kinema.ops.attention import KV, flash_attn, libraries, sdpa, whole
from kinema.ops.attention import reference as plain
from kinema.ops.common import PRECISIONS, Target
from kinema.ops.common.arguments import unchecked
from kinema.ops.common.launch import recording


def neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


contract = neighbour("test_attention_contract")
standins = neighbour("flash_attn_standins")
shared = neighbour("conftest")

Case, Segment, keys, CASES = contract.Case, contract.Segment, contract.keys, contract.CASES
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CPU, META = torch.device("cpu"), torch.device("meta")
NEWEST_CUDNN = 91900
REAL = any(version.installed() for version in libraries.VERSIONS.values())


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    """Whatever this machine has, a test says what there is."""
    forget()
    monkeypatch.setattr(libraries.Version, "installed", lambda self: False)
    monkeypatch.setattr(libraries, "cudnn_version", lambda: 0)
    yield
    forget()


def forget():
    for cache in (flash_attn._library, libraries.why_not_used, whole._rest):
        cache.cache_clear()
    for name in [m for m in sys.modules if m.split(".")[0] in ("flash_attn", "flash_attn_interface")]:
        del sys.modules[name]


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Stand-ins of these versions, to be found as packages are; for the rest of the test."""
    if REAL:
        pytest.skip("a FlashAttention is installed, which stand-ins would mix with")
    monkeypatch.undo()
    monkeypatch.setattr(libraries, "cudnn_version", lambda: 0)

    def put(*versions):
        folder = tmp_path / "-".join(map(str, versions))
        standins.write(folder, versions)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        return folder

    return put


def chosen(arch, precision="bf16", backend="auto", op="attention"):
    with recording(arch):
        made = plan_ops(Target(META, PRECISIONS["cuda"][precision]), backend)
    return next(choice for choice in made.choices if choice.op == op)


# ---- the plan


@pytest.mark.parametrize(
    ("arch", "installed", "cudnn", "backend"),
    [
        (80, (2, 3, 4), NEWEST_CUDNN, "triton"),
        (89, (2,), NEWEST_CUDNN, "triton"),
        (90, (), 0, "triton"),
        (90, (2,), 0, "triton"),
        (90, (2,), 90100, "torch"),
        (90, (2, 3), NEWEST_CUDNN, "flash-attn"),
        (90, (4,), NEWEST_CUDNN, "flash-attn"),
        (100, (), NEWEST_CUDNN, "torch"),
        (100, (4,), NEWEST_CUDNN, "torch"),
        (103, (2, 4), 91300, "flash-attn"),
        (100, (2,), 91300, "torch"),
        (100, (2, 3), 0, "triton"),
        (120, (2, 4), NEWEST_CUDNN, "torch"),
        (120, (2, 4), 0, "triton"),
    ],
)
def test_the_fastest_is_taken(install, monkeypatch, arch, installed, cudnn, backend):
    pytest.importorskip("triton")
    install(*installed)
    monkeypatch.setattr(libraries, "cudnn_version", lambda: cudnn)
    choice = chosen(arch)
    assert choice.backend == backend
    assert {*dict(choice.rejected), backend} >= {"flash-attn", "torch", "triton", "reference"}
    assert choice.rest == (None if backend == "triton" else "triton")
    for rejected, reason in choice.rejected:
        if rejected in ("flash-attn", "torch") and "installed" not in reason:
            assert "preferred" in reason and (arch < 90 or "#" in reason or reason == f"{backend} is preferred")


def test_without_triton_libraries_do_what_they_can(install, monkeypatch):
    monkeypatch.setattr(libraries, "quantize_unsupported", lambda target: ["triton is not installed"])
    install(2)
    monkeypatch.setattr(libraries.importlib.util, "find_spec", without("triton"))
    for arch, cudnn, backend in ((80, NEWEST_CUDNN, "flash-attn"), (90, NEWEST_CUDNN, "torch"), (90, 0, "flash-attn")):
        monkeypatch.setattr(libraries, "cudnn_version", lambda version=cudnn: version)
        choice = chosen(arch)
        assert (choice.backend, choice.rest) == (backend, "reference")
    assert chosen(80, "fp32").backend == "torch"


def without(name):
    real = importlib.util.find_spec
    return lambda wanted, *rest: None if wanted == name else real(wanted, *rest)


def test_a_reason_names_what_is_faster_and_who_measured_it(install, monkeypatch):
    install(2)
    monkeypatch.setattr(libraries, "cudnn_version", lambda: NEWEST_CUDNN)
    reason = dict(chosen(90).rejected)["flash-attn"]
    assert reason.startswith("FlashAttention-2 would run; cuDNN is preferred: ") and "350" in reason
    reason = dict(chosen(100).rejected)["flash-attn"]
    assert "cuDNN 9.19 is preferred" in reason and "sgl-project/sglang#33655" in reason
    assert "Triton is preferred" in dict(chosen(80).rejected)["torch"]


def test_the_version_is_the_best_for_the_gpu(install):
    install(2, 3, 4)
    with pytest.raises(ValueError):
        libraries.family(75)
    best = {arch: libraries.best_version(arch) for arch in (0, 75, 80, 89, 90, 100, 103, 120)}
    assert {arch: v and v.number for arch, v in best.items()} == {
        0: None, 75: None, 80: 2, 89: 2, 90: 3, 100: 4, 103: 4, 120: 2,
    }  # fmt: skip


@pytest.mark.parametrize("installed", [(), (2,), (3,), (4,), (2, 4), (3, 4)])
def test_what_is_installed_is_known_without_an_import(install, installed):
    install(*installed)
    assert tuple(number for number, v in libraries.VERSIONS.items() if v.installed()) == installed
    assert not set(standins.MODULES.values()) & set(sys.modules)


def test_two_of_them_may_lie_in_two_places(install):
    install(4)
    install(2)
    assert [number for number, v in libraries.VERSIONS.items() if v.installed()] == [2, 4]


def reasons(arch, precision="bf16", device=META):
    with recording(arch):
        return libraries.flash_attn_unsupported(Target(device, PRECISIONS["cuda"][precision]))


def test_flash_attention_says_why_it_cannot(install, monkeypatch):
    assert reasons(90) == ["flash-attn is not installed"]
    folder = install(3)
    assert reasons(90) == [] == reasons(90, "fp8")
    assert reasons(75) == ["needs compute capability 8.0, the GPU has 7.5"]
    assert reasons(100) == ["FlashAttention-3 is not made for compute capability 10.0"]
    assert reasons(90, "fp32") == ["has no fp32, and in precision fp32 attention is fp32"]
    assert libraries.flash_attn_unsupported(Target(CPU, PRECISIONS["cpu"]["bf16"])) == [
        "needs a GPU; the device is cpu"
    ]
    with recording(hip=True):
        assert libraries.flash_attn_unsupported(Target(META, PRECISIONS["cuda"]["bf16"])) == [
            "is used on NVIDIA GPUs only"
        ]
    (folder / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    forget()
    (reason,) = reasons(90)
    assert reason == "flash-attn-3 is installed, but its import fails: ImportError: undefined symbol: _ZN3c10"
    (folder / "flash_attn_interface.py").write_text("def flash_attn_func(): ...  # of another year")
    forget()
    (reason,) = reasons(90)
    assert reason.endswith("it is another release: flash_attn_interface has no flash_attn_with_kvcache")


def test_torch_does_not_wait_for_what_cannot_be_imported(install, monkeypatch):
    folder = install(3)
    monkeypatch.setattr(libraries, "cudnn_version", lambda: NEWEST_CUDNN)
    assert chosen(90).backend == "flash-attn"
    forget()
    (folder / "flash_attn_interface.py").write_text("raise ImportError")
    choice = chosen(90)
    assert choice.backend == "torch"
    assert dict(choice.rejected)["flash-attn"].endswith("its import fails: ImportError: no message")


def test_doctor_says_who_takes_the_rest(install, monkeypatch):
    pytest.importorskip("triton")
    install(3)
    with recording(90):
        plan = plan_ops(Target(META, PRECISIONS["cuda"]["bf16"]))
    lines = doctor._choices(plan)
    at = lines.index(f"  {'attention':16} flash-attn")
    assert lines[at + 1 : at + 3] == [
        f"  {'':16}   other calls: triton",
        f"  {'':16}   not torch: SDPA would run; FlashAttention-3 is preferred: {libraries.FASTEST[90][1]}",
    ]
    assert {op["op"]: op.get("rest") for op in doctor.ops(plan)} == {
        choice.op: "triton" if choice.op == "attention" else None for choice in plan.choices
    }


def test_a_gpu_is_a_device_and_an_architecture(install):
    install(3)
    assert reasons(90, device=CPU) == ["needs a GPU; the device is cpu"]
    assert libraries.flash_attn_unsupported(Target(META, PRECISIONS["cuda"]["bf16"])) == [
        "needs a GPU; the device is meta"
    ]


def test_where_torch_waits_for_triton(monkeypatch):
    pytest.importorskip("triton")

    def why(arch, precision="bf16", device=META, **given):
        with recording(arch, **given):
            return libraries.sdpa_not_preferred(Target(device, PRECISIONS["cuda"][precision]))

    monkeypatch.setattr(libraries, "cudnn_version", lambda: NEWEST_CUDNN)
    in_fp32 = "Triton is preferred: in fp32 it has neither cuDNN nor FlashAttention"
    for arch in (80, 90, 100, 120):
        assert why(arch, "fp32") == [in_fp32]
    assert why(80, hip=True) == ["Triton is preferred: it is not measured on AMD GPUs"]
    assert why(75) == []  # where Triton does not run
    assert why(90, device=CPU) == ["on a CPU the reference makes the same calls"]
    assert libraries.sdpa_not_preferred(Target(META, PRECISIONS["cuda"]["bf16"])) == why(90, device=CPU)
    assert libraries.flash_attn_not_preferred(Target(META, PRECISIONS["cuda"]["bf16"])) == []


@pytest.mark.parametrize(
    ("available", "version", "known", "name"),
    [(True, 90000, 90000, "cuDNN"), (True, 8907, 8907, "SDPA"), (True, None, 0, "SDPA"), (False, 91000, 0, "SDPA")],
)
def test_cudnn_counts_from_9_on(monkeypatch, available, version, known, name):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: available)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    libraries.cudnn_version.cache_clear()
    assert libraries.cudnn_version() == known
    assert libraries.sdpa_name(90) == name
    libraries.cudnn_version.cache_clear()


def test_forced_it_runs_or_raises_with_its_reasons(install):
    with pytest.raises(UnsupportedError, match="'flash-attn' cannot run attention here: flash-attn is not installed"):
        chosen(90, backend="flash-attn")
    install(2)
    with pytest.raises(UnsupportedError, match="has no fp32"):
        chosen(80, "fp32", backend="flash-attn")
    assert chosen(80, backend="flash-attn").backend == "flash-attn"  # though Triton is preferred there
    assert chosen(80, backend="torch").backend == "torch"
    assert chosen(80, backend="flash-attn", op="linear").backend == "triton"


def test_a_cpu_has_the_reference():
    for precision in PRECISIONS["cpu"].values():
        made = plan_ops(Target(CPU, precision))
        (choice,) = (c for c in made.choices if c.op == "attention")
        assert choice.backend in ("cpu", "reference") and choice.rest is None
        assert dict(choice.rejected)["torch"] == "on a CPU the reference makes the same calls"
        assert "needs a GPU" in dict(choice.rejected)["flash-attn"]
    forced = plan_ops(Target(CPU, PRECISIONS["cpu"]["fp32"]), "torch").choices[4]
    assert (forced.op, forced.backend) == ("attention", "torch") and forced.rest in ("cpu", "reference")


def test_torch_is_told_what_is_fastest(monkeypatch):
    gpu = torch.device("cuda", 0)
    current = torch.nn.attention._cur_sdpa_kernel_backends
    before = current(with_priority=True)
    for arch, cudnn, first in ((80, NEWEST_CUDNN, "FLASH"), (90, NEWEST_CUDNN, "CUDNN"), (90, 0, "FLASH")):
        monkeypatch.setattr(libraries, "cudnn_version", lambda version=cudnn: version)
        with recording(arch), sdpa._fastest_first(gpu):
            order = [backend.name for backend in current(with_priority=True)]
            assert order[0].startswith(first) and order[2:4] == ["EFFICIENT_ATTENTION", "MATH"]
    assert current(with_priority=True) == before


# ---- the calls


def aligned(case):
    """A case in bf16 whose heads can be loaded 16 bytes at a time."""
    head_dim = case.size[2] if case.size[2] % 8 == 0 else 8 * (case.size[2] // 8 + 1)
    return replace(case, size=(*case.size[:2], head_dim), dtype=FP16 if case.dtype == FP16 else BF16)


IN_16_BITS = {name: aligned(case) for name, case in CASES.items() if case.dtype != torch.float64}
MORE = {
    "text_video_all_lengths": Case(queries=(5, 12), keys=(Segment(5, (0, 5)), Segment(12)), dtype=BF16),
    "three_with_a_tail": Case(queries=(9,), keys=(Segment(4), Segment(7, (0, 3)), Segment(9)), dtype=FP16),
    "one_key_and_a_tail": Case(keys=(Segment(1), Segment(5, (0, 5))), dtype=BF16),
    "fused_joint": Case(layout="fused", queries=(9, 4), keys=(Segment(9), Segment(4, (2, 4))), dtype=BF16),
    "joint_buffers_scale": Case(queries=(9, 4), keys=keys(9, 4), scale=0.3, out=True, dtype=BF16),
    "own_buffer_and_bias": Case(bias="bn", out=True, dtype=BF16),
    "residual_in_place_and_segments": Case(residual="aliased", keys=keys(9, 4), dtype=BF16),
}
ALL = {**IN_16_BITS, **MORE}


def plain_enough(case):
    """By the letter of the adapters' words, not by their code: what a library takes."""
    lengths = [s.lengths is not None for s in case.keys]
    return (
        case.bias is None and case.causal is None and case.tiles is None
        and all(s.rope is None for s in case.keys)
        and (case.scale is None or case.scale > 0)
        and (not any(lengths) or (sum(lengths) == 1 and len(lengths) > 1))
    )  # fmt: skip


def candidate(module, device=CPU):
    functions, reference = (SimpleNamespace(attention=m.attention) for m in (module, plain))
    return shared.Candidate("attention", "library", device, lambda target: [], functions, reference)


@pytest.mark.parametrize(("version", "arch"), [(2, 80), (3, 90), (4, 100)])
@pytest.mark.parametrize("name", ALL)
def test_flash_attention_or_the_rest_keeps_the_contract(install, monkeypatch, version, arch, name):
    install(version)
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    case = ALL[name]
    with recording(arch):
        contract.check_attention(candidate(flash_attn), case)
    calls = sys.modules[standins.MODULES[version]].calls
    assert len(calls) == plain_enough(case)
    for used, shape, count, cut in calls:
        assert used == str(version)
        assert shape[1] == sum(case.queries) and count == sum(s.slots for s in case.keys)
        assert cut == any(s.lengths is not None for s in case.keys)


@pytest.mark.parametrize("name", ALL)
def test_sdpa_or_the_rest_keeps_the_contract(monkeypatch, name):
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    passed_on = []
    monkeypatch.setattr(sdpa, "rest", lambda *given: passed_on.append(given) or unchecked(plain.attention))
    case = ALL[name]
    contract.check_attention(candidate(sdpa), case)
    taken = plain_enough(case) and all(s.lengths is None for s in case.keys)
    assert len(passed_on) == (not taken)


UNTAKEN = {
    "fp32": Case(dtype=FP32),
    "head_dim": Case((2, 3, 20), dtype=BF16),
    "head_dim_of_pieces": Case((2, 3, 20), (5, 6), keys(5, 6), dtype=BF16),
    "lengths_of_the_only_keys": Case(keys=(Segment(19, (7, 0)),), dtype=BF16),
    "two_with_lengths": Case(keys=(Segment(19, (7, 0)), Segment(4, (4, 1)), Segment(3)), dtype=BF16),
    "lengths_of_all": Case(keys=(Segment(19, (7, 0)), Segment(4, (4, 1))), dtype=BF16),
}


@pytest.mark.parametrize("name", UNTAKEN)
def test_what_flash_attention_cannot_goes_to_the_rest(install, monkeypatch, name):
    install(3)
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    with recording(90):
        contract.check_attention(candidate(flash_attn), UNTAKEN[name])
        assert flash_attn._library(90)[1].calls == []


def drawn(batch=2, heads=3, tokens=11, slots=19, head_dim=16, dtype=BF16):
    draw = shared.Draw(1, CPU)
    return (draw.normal(batch, heads, n, head_dim, dtype=dtype) for n in (tokens, slots, slots))


def library_calls(version, arch, *args, **options):
    """How many of a call's operands reached the library; the call must give what the reference gives."""
    with recording(arch):
        calls = flash_attn._library(arch)[1].calls
        before = len(calls)
        got = flash_attn.attention(*args, **options)
    for ours, theirs in zip(got, plain.attention(*args, **options), strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=0.02)
    return len(calls) - before


def test_operands_that_cannot_be_loaded_at_once_go_to_the_rest(install):
    install(2)
    q, k, v = drawn()
    odd = torch.zeros(2, 3, 19, 17, dtype=BF16)[..., :16].copy_(k)
    shifted = torch.zeros(k.numel() + 1, dtype=BF16)[1:].view(k.shape).copy_(v)
    assert library_calls(2, 80, q, KV(k, v)) == 1
    assert library_calls(2, 80, q, KV(odd, v)) == 0
    assert library_calls(2, 80, q, KV(k, shifted)) == 0
    wide = torch.zeros(2, 3, 11, 17, dtype=BF16)[..., :16].copy_(q)
    assert library_calls(2, 80, wide, KV(k, v)) == 0


def test_what_is_in_one_piece_is_not_copied():
    q, k, v = drawn()
    call = whole.joined((q,), (KV(k, v),))
    assert [t.data_ptr() for t in (call.q, call.k, call.v)] == [t.data_ptr() for t in (q, k, v)]
    assert call.q.shape == (2, 11, 3, 16) and call.lengths is None


def test_without_a_flash_attention_its_file_says_so():
    q, k, v = drawn()
    with recording(90), pytest.raises(RuntimeError, match="no FlashAttention is installed for this GPU"):
        flash_attn.attention(q, KV(k, v))


def test_large_heads_go_to_the_rest(install):
    install(2, 4)
    for arch, head_dim, taken in ((80, 256, 1), (80, 264, 0), (90, 256, 1), (100, 128, 1), (100, 136, 0)):
        q, k, v = drawn(1, 1, 5, 7, head_dim)
        assert library_calls(2, arch, q, KV(k, v)) == taken, (arch, head_dim)


def test_pieces_are_joined_where_it_pays(install):
    """One query less and the copy would cost more than the library saves."""
    install(3)
    for tokens, taken in ((whole.JOIN_FROM - 1, 0), (whole.JOIN_FROM, 1)):
        q, k, v = drawn(1, 1, tokens, 8)
        assert library_calls(3, 90, q, (KV(k, v), KV(v, k))) == taken
        assert library_calls(3, 90, (q[:, :, :9], q[:, :, 9:]), KV(k, v)) == taken
        assert library_calls(3, 90, q[:, :, :9], KV(k, v)) == 1


def test_no_keys_are_none_that_are_seen(install, monkeypatch):
    """Beside a segment without slots a length may leave nothing at all."""
    install(3)
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    q, k, v = drawn()
    nothing, tail = KV(k[:, :, :0], v[:, :, :0]), KV(k, v, torch.tensor([0, 7]))
    assert library_calls(3, 90, q, (nothing, tail)) == 0
    assert library_calls(3, 90, q, (KV(k[:, :, :1], v[:, :, :1]), tail)) == 1


def test_negative_scales_go_to_the_rest(install):
    install(2)
    q, k, v = drawn()
    for scale, taken in ((0.3, 1), (-0.3, 0), (0.0, 0)):
        assert library_calls(2, 80, q, KV(k, v), scale=scale) == taken


def test_e4m3_goes_to_the_rest(install):
    install(2)
    q, k, v = drawn()
    assert library_calls(2, 80, q, KV(k, v), quantize="fp8") == 0


@pytest.mark.parametrize("module", [flash_attn, sdpa])
def test_what_does_not_fit_is_refused(install, monkeypatch, module):
    install(3)
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    q, k, v = drawn()
    residual = torch.zeros(2, 11, 48, dtype=BF16)
    with recording(90):
        with pytest.raises(ValueError, match="single query segment"):
            module.attention((q[:, :, :4], q[:, :, 4:]), KV(k, v), residual=residual)
        with pytest.raises(ValueError, match="shape"):
            module.attention(q, KV(k, v), out=torch.empty(2, 11, 47, dtype=BF16))
        with pytest.raises(ValueError, match="quantize to 'int4'"):
            module.attention(q, KV(k, v), quantize="int4")


def test_who_takes_the_rest():
    pytest.importorskip("triton")
    names = []
    for arch, quantize, dtype, device in (
        (90, None, BF16, META), (80, None, FP32, META), (80, "fp8", BF16, META), (0, None, BF16, CPU),
    ):  # fmt: skip
        with recording(arch):
            run = whole.rest((torch.empty(1, 1, 1, 8, dtype=dtype, device=device),), quantize)
        names.append(run.__module__.rsplit(".", 1)[1])
    assert names[:3] == ["triton", "triton", "reference"] and names[3] in ("cpu", "reference")


# ---- planted mistakes


def tail_one_longer(call):
    return replace(call, lengths=call.lengths + 1) if call.lengths is not None else call


def own_lengths_alone(call):
    return replace(call, lengths=call.lengths - 3) if call.lengths is not None else call


def keys_and_values_swapped(call):
    return replace(call, k=call.v, v=call.k)


def queries_turned(call):
    return replace(call, q=call.q.flip(1))


def heads_turned(call):
    return replace(call, v=call.v.flip(2).contiguous())


@pytest.mark.parametrize(
    "mistake", [tail_one_longer, own_lengths_alone, keys_and_values_swapped, queries_turned, heads_turned]
)
def test_mistakes_in_what_is_joined_are_noticed(install, monkeypatch, mistake):
    install(3)
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    monkeypatch.setattr(flash_attn, "joined", lambda *given: mistake(whole.joined(*given)))
    assert caught()


@pytest.mark.parametrize("what", ["not_cleared", "residual_dropped", "results_swapped", "scale_dropped", "unsorted"])
def test_mistakes_in_the_adapter_are_noticed(install, monkeypatch, what):
    install(3)
    monkeypatch.setattr(whole, "JOIN_FROM", 1)
    if what == "not_cleared":
        monkeypatch.setattr(whole, "_cleared", lambda segment: segment.v)
    elif what == "residual_dropped":
        monkeypatch.setattr(flash_attn, "delivered", lambda y, q, residual, out: whole.delivered(y, q, None, out))
    elif what == "results_swapped":
        monkeypatch.setattr(flash_attn, "delivered", lambda y, *rest: whole.delivered(y.flip(1), *rest))
    elif what == "scale_dropped":
        run = flash_attn._run
        monkeypatch.setattr(flash_attn, "_run", lambda version, module, call, scale: run(version, module, call, None))
    else:
        monkeypatch.setattr(whole, "sorted", lambda segments, key: list(segments), raising=False)
    assert caught()


def caught():
    """Whether some case notices what is wrong."""
    for case in ALL.values():
        try:
            with recording(90):
                contract.check_attention(candidate(flash_attn), case)
        except (AssertionError, RuntimeError):  # the contract's, or a stand-in's own
            return True
    return False
