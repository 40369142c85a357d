"""What only `attention` in Triton has: tiles and their edges, split keys, descriptors, operands that are prepared."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.attention import FP8_BLOCK, KV, BlockCausal, BlockList, reference
from kinema.ops.attention import triton as op
from kinema.ops.attention.triton_prepare import prepare
from kinema.ops.common import Rope
from kinema.ops.common.launch import Config, forced, recording

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
META = torch.device("meta")
FP32, BF16, E4M3 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
KINDS = ("", "_fp8", "_fp32")


def normal(*shape, seed=0, dtype=FP32):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).to(DEVICE)


EIGHT_BIT_KEYS = 16 if DEVICE == "cpu" else 32  # an instruction of a GPU multiplies so many; fewer have more edges


def tiles(rows=16, keys=16, tma=0, per_sm=0, **split):
    """Forced tile sizes for any head dim, and how keys are split (not at all)."""
    split = {"PROGRAMS": 64, "LEAST": 1, "MOST": 1, **split}
    config = Config({"ROWS": rows, "KEYS": keys, "TMA": tma, "PER_SM": per_sm})
    names = {f"attention/{dim}{kind}": config for dim in (64, 128) for kind in KINDS}
    return forced({**names, "attention/split": Config(split)})


def wide(t):
    return t.double() if t is not None and t.is_floating_point() else t


def exact(q, kv, **options):
    """The reference in float64."""
    queries, segments = (x if isinstance(x, tuple) else (x,) for x in (q, kv))
    segments = tuple(KV(wide(s.k), wide(s.v), s.lengths, s.rope) for s in segments)
    options = {name: wide(value) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    return reference.attention(tuple(wide(part) for part in queries), segments, **options)


def assert_close(got, wanted, tolerance=2e-6):
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs.double()).abs().max()) <= tolerance * float(
            theirs.abs().max().clamp(min=1.0)
        )


# ---- tiles


@pytest.mark.parametrize(("rows", "keys"), [(16, 16), (32, 16), (16, 32)])
def test_queries_and_keys_end_around_the_edges_of_tiles(rows, keys):
    for queries in (rows - 1, rows, rows + 1):
        for slots in (1, keys - 1, keys, keys + 1, 2 * keys):
            q, k, v = normal(1, 1, queries, 16), normal(1, 1, slots, 16, seed=1), normal(1, 1, slots, 16, seed=2)
            with tiles(rows, keys):
                got = op.attention(q, KV(k, v))
            assert_close(got, exact(q, KV(k, v)))


def arguments(name):
    """Calls that reach each of the kernel's loops."""
    queries = 37 if "list" in name else 20
    q, k, v = normal(2, 2, queries, 16), normal(2, 2, 50, 16, seed=1), normal(2, 2, 50, 16, seed=2)
    cache = KV(normal(2, 2, 21, 16, seed=3), normal(2, 2, 21, 16, seed=4), torch.tensor([21, 5], device=DEVICE))
    residual = normal(2, queries, 32, seed=5)
    indices = torch.tensor([[0, 3, 2, 99], [1, 3, 2, 0]], dtype=torch.int64, device=DEVICE)[None, None]
    counts = torch.tensor([3, 4], device=DEVICE)[None, None]
    every = BlockList(32, 16, torch.tensor([[[[2, 0, 9], [1, 2, 0]]]]).to(DEVICE), counts - 1)
    lengths = torch.tensor([50, 33], device=DEVICE)
    return {
        "full": (q, KV(k, v), {}),
        "joint": ((q, normal(2, 2, 5, 16, seed=6)), (KV(k, v), cache), {}),
        "lengths": (q, KV(k, v, lengths), {"residual": residual}),
        "blind": (q, KV(k, v, torch.tensor([0, 3], device=DEVICE)), {"residual": residual}),
        "causal": (q, (cache, KV(k, v)), {"causal": BlockCausal(9, offset=20)}),
        "bias": (q, KV(k, v), {"bias": normal(1, 2, queries, 50, seed=7)}),
        "list": (q, KV(k, v, lengths), {"blocks": BlockList(32, 16, indices, counts)}),
        "list_of_whole_tiles": (q, KV(k[:, :, :48], v[:, :, :48]), {"blocks": every}),
        "list_and_bias": (
            q,
            KV(k, v, lengths),
            {"blocks": BlockList(32, 16, indices, counts), "bias": normal(1, 2, queries, 50, seed=7)},
        ),
        "list_of_whole_tiles_and_bias": (
            q,
            KV(k[:, :, :48], v[:, :, :48]),
            {"blocks": every, "bias": normal(1, 2, queries, 48, seed=7)},
        ),
        "list_over_segments": (
            q,
            (cache, KV(k, v)),
            {"blocks": BlockList(32, 20, indices, counts), "residual": residual},
        ),
    }[name]


NAMES = (
    "full", "joint", "lengths", "blind", "causal", "bias", "list", "list_of_whole_tiles", "list_over_segments"
)  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "list_and_bias", "list_of_whole_tiles_and_bias"])
def test_every_loop_is_right(name):
    q, kv, options = arguments(name)
    with tiles():
        assert_close(op.attention(q, kv, **options), exact(q, kv, **options))


@pytest.mark.parametrize("name", NAMES)
def test_a_persistent_grid_does_the_same_work(name):
    q, kv, options = arguments(name)
    with tiles():
        each = op.attention(q, kv, **options)
    with tiles(per_sm=1):
        shared = op.attention(q, kv, **options)
    assert all(torch.equal(a, b) for a, b in zip(each, shared, strict=True))


@pytest.mark.parametrize("quantize", [None, "fp8"])
@pytest.mark.parametrize("layout", ["heads_first", "tokens_first"])
def test_descriptors_read_what_pointers_read(quantize, layout):
    q, kv, _ = arguments("joint")
    if layout == "tokens_first":
        kv = tuple(KV(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (s.k, s.v)), s.lengths) for s in kv)
    keys = EIGHT_BIT_KEYS if quantize else 16
    with tiles(keys=keys):
        pointers = op.attention(q, kv, quantize=quantize)
    with tiles(keys=keys, tma=1):
        descriptors = op.attention(q, kv, quantize=quantize)
    assert all(torch.equal(a, b) for a, b in zip(pointers, descriptors, strict=True))


def test_weights_of_e4m3_can_be_multiplied_as_bf16(monkeypatch):
    """As on Hopper: the weights are rounded the same, so all values of 1 give 1."""
    q, kv, options = arguments("lengths")
    with tiles(keys=EIGHT_BIT_KEYS):
        wanted = op.attention(q, kv, quantize="fp8", **options)
        monkeypatch.setattr(op, "HOPPER", op.architecture(torch.device(DEVICE)))
        got = op.attention(q, kv, quantize="fp8", **options)
        ones = op.attention(q, KV(kv.k, torch.ones_like(kv.v), kv.lengths), quantize="fp8")
    assert_close(got, wanted, 1e-2)
    assert float((ones[0] - 1).abs().max()) <= 2 * torch.finfo(torch.float32).eps


def meta(*shape, dtype=BF16):
    return torch.empty(*shape, dtype=dtype, device=META)


def launched(arch, call):
    with recording(arch) as kept:
        call()
    return kept.launches


@pytest.mark.parametrize(
    ("arch", "k", "described"),
    [
        (90, meta(1, 2, 1024, 64), True),
        (80, meta(1, 2, 1024, 64), False),
        (90, meta(1, 2, 1024, 60), False),  # rows of 120 bytes
        (90, meta(1, 2, 1, 64).expand(-1, -1, 1024, -1), False),
        (90, meta(1, 1024, 3 * 128)[..., 128:256].unflatten(-1, (2, 64)).transpose(1, 2), True),
    ],
)
def test_what_the_copy_engine_cannot_address_is_read_by_pointers(arch, k, described):
    q = meta(1, 2, 1024, k.shape[3])
    launch = launched(arch, lambda: op.attention(q, KV(k, k)))[0]
    given = launch.arguments["k_tiles"], launch.arguments["v_tiles"]
    assert [tile is not None for tile in given] == [described, described]


@pytest.mark.parametrize(
    ("queries", "options", "rows", "keys", "warps"),
    [
        (4680, {}, 128, 64, 8),
        (40, {}, 64, 64, 8),
        (3, {}, 16, 64, 4),
        (4680, {"bias": (1, 1, 4680, 4680)}, 64, 32, 8),
        (4680, {"bias": (1, 1, 1, 4680)}, 128, 64, 8),
        (4680, {"blocks": (64, 64)}, 64, 64, 4),
        (4680, {"blocks": (128, 96)}, 128, 32, 8),
        (4680, {"blocks": (128, 20)}, 128, 64, 8),
    ],
)
def test_tiles_fit_what_is_asked(queries, options, rows, keys, warps):
    q, k = meta(1, 8, queries, 128), meta(1, 8, 4680, 128)
    if "bias" in options:
        options = {"bias": meta(*options["bias"], dtype=FP32)}
    if "blocks" in options:
        q_block, k_block = options["blocks"]
        lists = meta(1, 1, -(-queries // q_block), 5, dtype=torch.int32)
        options = {"blocks": BlockList(q_block, k_block, lists, lists[..., 0])}
    launch = launched(80, lambda: op.attention(q, KV(k, k), **options))[0]
    assert (launch.arguments["ROWS"], launch.arguments["KEYS"], launch.config.warps) == (rows, keys, warps)
    if "blocks" in options:
        assert launch.arguments["STEPS"] == (k_block // keys if k_block % keys == 0 else 0)


# ---- keys split among programs


@pytest.mark.parametrize("name", NAMES)
def test_split_keys_give_the_same(name):
    q, kv, options = arguments(name)
    with tiles(MOST=3):
        few = op.attention(q, kv, **options)
    held = {**options}
    if "residual" in options:
        held["residual"] = held["out"] = options["residual"].clone()
    with tiles(MOST=40):
        many = op.attention(q, kv, **held)
    assert_close(few, exact(q, kv, **options))
    assert_close(many, few)


def test_split_keys_of_large_logits():
    """Parts are brought to their common top: 2 to the power of a top itself is infinite."""
    q, kv, options = arguments("full")
    loud = tuple(200.0 * part for part in q) if isinstance(q, tuple) else 200.0 * q
    with tiles(MOST=3):
        got = op.attention(loud, kv, **options)
    assert_close(got, exact(loud, kv, **options), 1e-4)


@pytest.mark.parametrize("causal", [None, BlockCausal(5)])
def test_nothing_behind_a_tensor_is_touched(guarded, causal):
    """Neither behind the last query nor behind the last key, though the tiles of both end there in the middle."""
    q, k, v = (guarded(normal(1, 1, tokens, 24, seed=tokens)) for tokens in (19, 21, 21))
    with tiles():
        got = op.attention(q, KV(k, v), causal=causal)
    assert_close(got, exact(q, KV(k, v), causal=causal))


@pytest.mark.parametrize("name", ["joint", "lengths"])
def test_split_keys_in_e4m3(name):
    """A weight is rounded behind the largest logit of its own part, so it is not the same."""
    q, kv, options = arguments(name)
    with tiles(keys=EIGHT_BIT_KEYS):
        whole = op.attention(q, kv, quantize="fp8", **options)
    with tiles(keys=EIGHT_BIT_KEYS, MOST=3):
        parts = op.attention(q, kv, quantize="fp8", **options)
    assert_close(parts, whole, 0.1)
    assert any(not torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_keys_are_split_where_queries_are_few():
    long, short, k = meta(1, 12, 4680, 128), meta(1, 12, 100, 128), meta(1, 12, 18720, 128)
    (launch,) = launched(80, lambda: op.attention(long, KV(k, k)))
    assert launch.arguments["splits"] == 1 and launch.arguments["parts"] is None
    split, combine = launched(80, lambda: op.attention(short, KV(k, k)))
    assert split.arguments["splits"] == combine.arguments["splits"] == 2 * 108 // 12
    assert split.grid == (12 * 18,)
    assert split.arguments["residual"] is None, "it is added once"
    # none has fewer tiles of keys than it is worth
    few = meta(1, 12, 300, 128)
    assert launched(80, lambda: op.attention(short, KV(few, few)))[0].arguments["splits"] == 1
    joint = launched(80, lambda: op.attention((short, short[:, :, :7]), KV(k, k)))
    assert [launch.arguments.get("before") for launch in joint] == [None, 0, 100]


def test_only_equal_tiles_are_shared_out_beforehand():
    q = meta(1, 12, 4680, 64)
    lists = meta(1, 1, 74, 5, dtype=torch.int32)

    def persistent(kv, **options):
        (launch,) = launched(90, lambda: op.attention(q, kv, **options))
        assert (launch.grid == (132,)) == launch.arguments["PERSISTENT"]
        return launch.arguments["PERSISTENT"]

    assert persistent(KV(q, q))
    assert not persistent(KV(q, q, meta(1, dtype=torch.int32)))
    assert not persistent(KV(q, q), causal=BlockCausal(1560))
    assert not persistent(KV(q, q), blocks=BlockList(64, 64, lists, lists[..., 0]))


@pytest.mark.parametrize("name", ["queries", "keys"])
def test_a_segment_may_be_empty(name):
    q, kv, _ = arguments("joint")
    if name == "queries":
        for segments in ((q[0][:, :, :0], q[1]), (q[1], q[0][:, :, :0])):
            got = op.attention(segments, kv)
            wanted = exact(q[1], kv)[0]
            assert sorted(part.shape[1] for part in got) == [0, 5]
            assert_close([part for part in got if part.shape[1]], [wanted])
    else:
        nothing = KV(kv[0].k[:, :, :0], kv[0].v[:, :, :0])
        assert_close(op.attention(q[1], (nothing, kv[1])), exact(q[1], kv[1]))
        assert bool((op.attention(q[1], nothing)[0] == 0).all())


# ---- prepared operands


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("head_dim", [8, 20])
def test_keys_are_rotated_to_what_the_rope_gives(interleaved, head_dim):
    x = normal(2, 3, 37, head_dim, dtype=BF16)
    positions = torch.randint(0, 50, (2, 30, 1), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rope = Rope.from_positions(positions, (head_dim,), interleaved=interleaved, start=4)
    lengths = torch.tensor([37, 11], device=DEVICE)
    got = prepare(x, rope=rope, lengths=lengths)
    wanted = rope.rotate(x.double()).to(BF16)
    assert got.scale is None and got.data.dtype == BF16
    assert torch.equal(got.data[0], wanted[0]) and torch.equal(got.data[1, :, :11], wanted[1, :, :11])
    assert bool((got.data[1, :, 11:] == 0).all())


@pytest.mark.parametrize("block", [1, FP8_BLOCK])
@pytest.mark.parametrize("channels_first", [False, True])
def test_e4m3_has_the_scales_of_the_contract(block, channels_first):
    x = normal(2, 2, 150, 20) * torch.linspace(0.1, 3.0, 150, device=DEVICE)[:, None]
    x[:, 1, :130] = 0.0  # nothing to scale
    x[0, 0, 7] = float("nan")  # where no query looks
    lengths = torch.tensor([150, 140], device=DEVICE)
    got = prepare(x, lengths=lengths, fp8=True, block=block, channels_first=channels_first)
    real = torch.where((torch.arange(150, device=DEVICE) < lengths[:, None])[:, None, :, None], x, 0.0)
    tops = real.nan_to_num(0.0).abs().amax(-1)
    tops = torch.stack([t.amax(-1) for t in tops.split(block, dim=-1)], dim=-1) if block > 1 else tops
    assert torch.equal(got.scale.cpu(), tops.cpu().clamp(min=1e-12) / 448.0)  # a GPU would multiply by 1/448
    step = got.scale.repeat_interleave(block, dim=-1)[..., :150, None] if block > 1 else got.scale[..., None]
    data = got.data[:, :, :150].double()
    assert bool(data[0, 0, 7].isnan().all())
    wanted = (real.double() / step.double()).clamp(-448.0, 448.0)
    known = ~wanted.isnan()
    half_a_step = (wanted.abs() * 2.0**-4).clamp(min=2.0**-10) * (1.0 + 1e-6)
    assert bool(((data - wanted).abs() <= half_a_step)[known].all())
    assert got.data.dtype == E4M3 and got.data.stride(2 if channels_first else 3) == 1
    if channels_first:
        assert got.data.shape[2] == 160 and bool((got.data[:, :, 150:].double() == 0).all())


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_loud_neighbour_is_no_part_of_a_heads_scale(interleaved):
    x = normal(1, 9, 2, 20).transpose(1, 2)  # the channels of a token's heads lie side by side
    x[:, 1] = 1e4
    rope = Rope.from_positions(torch.arange(9, device=DEVICE)[:, None], (20,), interleaved=interleaved)
    both, alone = (prepare(t, rope=rope, fp8=True) for t in (x, x[:, :1].contiguous()))
    assert torch.equal(both.scale[:, :1], alone.scale)
    assert torch.equal(both.data[:, :1].float(), alone.data.float())


def test_only_real_slots_are_rotated_by_a_table_of_their_own():
    """Tables of [R, D/2] and [1, R, D/2] serve all samples."""
    x = normal(2, 1, 9, 8)
    rope = Rope.from_positions(torch.arange(9, device=DEVICE)[:, None], (8,))
    one = Rope(rope.cos[None], rope.sin[None])
    assert torch.equal(prepare(x, rope=rope).data, prepare(x, rope=one).data)
    across = Rope(rope.cos.mT.contiguous().mT, rope.sin.mT.contiguous().mT)
    assert torch.equal(prepare(x, rope=rope).data, prepare(x, rope=across).data)


# ---- refusals


def test_e4m3_is_refused_where_no_instruction_multiplies_it():
    q = meta(1, 2, 128, 64)
    with recording(80), pytest.raises(ValueError, match=r"e4m3 needs compute capability 8\.9, the GPU has 8\.0"):
        op.attention(q, KV(q, q), quantize="fp8")
    with recording(80) as kept:
        op.attention(q, KV(q, q))
    assert len(kept.launches) == 1
    for arch in (89, 90, 100, 120):
        assert len(launched(arch, lambda: op.attention(q, KV(q, q), quantize="fp8"))) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q: (q.double(), KV(q.double(), q.double())), "wanted fp32, bf16 or fp16"),
        (lambda q: (q, KV(q.to(BF16), q)), "k is torch.bfloat16"),
        (lambda q: (q, KV(q[:, :1], q[:, :1])), r"k is .*\(1, 1, 8, 8\)"),
        (lambda q: (q, KV(q, q[:, :, :3])), "wanted the same"),
        (lambda q: (q.transpose(2, 3).contiguous().transpose(2, 3), KV(q, q)), "channels dense"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, said):
    q, kv = change(normal(1, 2, 8, 8))
    with pytest.raises(ValueError, match=said):
        op.attention(q, kv)


def test_on_meta_tensors_it_is_its_own_fake():
    q = meta(2, 3, 9, 16)
    first, second = op.attention((q, q[:, :, :4]), KV(q, q), quantize="fp8")
    assert (first.shape, second.shape) == ((2, 9, 48), (2, 4, 48))
    assert first.dtype == BF16 and first.device == META
