"""Chunk by chunk with a K/V cache equals attention over the whole clip: what streaming generation rests on.

A cache keeps keys normalised and un-rotated in slots: the first chunks for good (the sink), the latest in a ring.
Each read rotates them from the positions that the slots carry.
"""

from dataclasses import dataclass, field

import pytest
import torch

from kinema.ops.attention import KV, BlockCausal
from kinema.ops.common import Rope
from kinema.ops.qk_norm_rope import HeadNorm

HEADS, HEAD_DIM, AXES = 2, 16, (4, 6, 6)
CHANNELS = HEADS * HEAD_DIM
FRAMES, HEIGHT, WIDTH = 2, 1, 3
CHUNK = FRAMES * HEIGHT * WIDTH
CHUNKS = 7
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def positions_of(chunk):
    """[CHUNK, 3] of a chunk's tokens in the clip."""
    axes = torch.meshgrid(
        torch.arange(FRAMES) + FRAMES * chunk, torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"
    )
    return torch.stack([axis.flatten() for axis in axes], dim=-1)


def clip(ops, seed=0):
    """Projected queries, keys and values of a whole clip, [1, CHUNKS · CHUNK, C] each, and the norm of q and k."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, CHUNKS * CHUNK, CHANNELS, generator=generator).to(ops.device) for _ in range(3))
    weight = 1.0 + torch.rand(CHANNELS, generator=generator).to(ops.device)
    return q, k, v, HeadNorm("rms", 1e-6, weight, across_heads=True)


def heads_of(v):
    return v.unflatten(-1, (HEADS, -1)).transpose(1, 2)


@dataclass
class Cache:
    """Slots of one request. sink, window: in chunks."""

    ops: object
    sink: int
    window: int
    written: int = 0
    k: torch.Tensor = field(init=False)
    v: torch.Tensor = field(init=False)
    positions: torch.Tensor = field(init=False)

    def __post_init__(self):
        slots = (self.sink + self.window) * CHUNK
        # free slots hold whatever memory held
        self.k = torch.full((1, HEADS, slots, HEAD_DIM), float("nan"), device=self.ops.device)
        self.v = self.k.clone()
        self.positions = torch.zeros(slots, 3)

    def write(self, k, v, norm):
        """The next chunk's keys and values [1, CHUNK, C], over the oldest chunk that is not in the sink."""
        chunk = self.written
        block = chunk if chunk < self.sink else self.sink + (chunk - self.sink) % self.window
        slots = slice(block * CHUNK, (block + 1) * CHUNK)
        self.ops.qk_norm_rope(k, HEADS, norm=norm, out=self.k[:, :, slots])
        self.v[:, :, slots] = heads_of(v)
        self.positions[slots] = positions_of(chunk).float()
        self.written += 1

    @property
    def filled(self):
        return min(self.written, self.sink + self.window) * CHUNK

    def kept(self):
        """Which chunks are in it."""
        last = range(max(self.written - self.window, self.sink), self.written)
        return [*range(min(self.sink, self.written)), *last]

    def read(self, origin=0):
        """Keys to be rotated on read, time counted from the frame `origin`."""
        offset = torch.tensor([origin, 0, 0])
        rope = Rope.from_positions(self.positions - offset, AXES).to(self.ops.device)
        return KV(self.k, self.v, torch.tensor([self.filled], device=self.ops.device), rope)


def rotated(ops, x, norm, positions):
    return ops.qk_norm_rope(x, HEADS, norm=norm, rope=Rope.from_positions(positions, AXES).to(ops.device))


def streamed(ops, q, k, v, norm, sink, window, origin=lambda cache: 0):
    """The clip chunk by chunk: each attends to the cache and to itself, then enters the cache."""
    cache, results = Cache(ops, sink, window), []
    for chunk in range(CHUNKS):
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        start = origin(cache)
        at = positions_of(chunk) - torch.tensor([start, 0, 0])
        own = KV(rotated(ops, k[:, part], norm, at), heads_of(v[:, part]))
        results += ops.attention(rotated(ops, q[:, part], norm, at), (cache.read(start), own))
        cache.write(k[:, part], v[:, part], norm)
    return torch.cat(results, dim=1)


def whole(ops, q, k, v, norm, **options):
    """The clip at once, keys rotated beforehand."""
    positions = torch.cat([positions_of(chunk) for chunk in range(CHUNKS)])
    q, k = (rotated(ops, x, norm, positions) for x in (q, k))
    (y,) = ops.attention(q, KV(k, heads_of(v)), **options)
    return y


def naive(q, k, v, norm, seen):
    """The clip in float64, head by head and chunk by chunk, over the chunks that `seen` names. [1, S, C]."""
    positions = torch.cat([positions_of(chunk) for chunk in range(CHUNKS)]).double()
    rates = torch.cat([10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d) for d in AXES])
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(AXES) // 2)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), positions[:, axis] * rates)

    def prepared(x):
        x = x[0].double().cpu()
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double().cpu()
        return torch.view_as_complex(x.view(-1, HEADS, HEAD_DIM // 2, 2)) * turn[:, None]

    q, k, v = prepared(q), prepared(k), v[0].double().cpu().view(-1, HEADS, HEAD_DIM)
    y = torch.empty_like(v)
    for chunk in range(CHUNKS):
        rows = torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        columns = torch.cat([torch.arange(c * CHUNK, (c + 1) * CHUNK) for c in seen(chunk)])
        for head in range(HEADS):
            logits = (q[rows, head] @ k[columns, head].conj().T).real / HEAD_DIM**0.5
            y[rows, head] = torch.softmax(logits, dim=-1) @ v[columns, head]
    return y.flatten(1)[None]


def error(got, wanted):
    return float((got.double().cpu() - wanted.double().cpu()).abs().max() / wanted.abs().max())


def test_a_cache_that_keeps_everything_is_block_causal_attention(ops):
    q, k, v, norm = clip(ops)
    at_once = whole(ops, q, k, v, norm, causal=BlockCausal(CHUNK))
    assert error(at_once, naive(q, k, v, norm, lambda chunk: range(chunk + 1))) <= TOLERANCE
    for sink, window in ((0, CHUNKS), (1, CHUNKS - 1), (3, 5)):
        assert error(streamed(ops, q, k, v, norm, sink, window), at_once) <= TOLERANCE
    assert error(whole(ops, q, k, v, norm), at_once) > 0.01


@pytest.mark.parametrize(
    ("sink", "window"),
    [(0, 1), (1, 2), (2, 3), *(pytest.param(*c, marks=pytest.mark.full) for c in ((0, 3), (1, 1)))],
)
def test_sink_and_ring_see_exactly_what_they_keep(ops, sink, window):
    """With eviction: the ring is overwritten in place, so that its slots are out of order most of the time."""
    q, k, v, norm = clip(ops)

    def seen(chunk, window=window):
        return sorted({*range(min(sink, chunk)), *range(max(chunk - window, 0), chunk + 1)})

    got = streamed(ops, q, k, v, norm, sink, window)
    assert error(got, naive(q, k, v, norm, seen)) <= TOLERANCE
    assert error(got, naive(q, k, v, norm, lambda chunk: seen(chunk, window + 1))) > 0.01


def test_time_may_be_counted_from_the_window(ops):
    """Positions that never grow: a clip without an end stays where the model was trained."""
    q, k, v, norm = clip(ops)
    absolute = streamed(ops, q, k, v, norm, 0, 3)
    largest = []

    def first_frame_of_the_window(cache):
        start = min(cache.kept(), default=cache.written) * FRAMES
        largest.append(cache.written * FRAMES - start)
        return start

    relative = streamed(ops, q, k, v, norm, 0, 3, first_frame_of_the_window)
    assert error(relative, absolute) <= TOLERANCE
    assert max(largest) == 3 * FRAMES


def test_requests_at_different_chunks_share_a_call(ops):
    """Two caches, filled and turned differently, in one batch: lengths and positions belong to the sample."""
    chunks, sink, window = (1, 6), 1, 3
    rows, alone = [], []
    for seed, chunk in enumerate(chunks):
        q, k, v, norm = clip(ops, seed)
        norm = HeadNorm("rms", 1e-6, torch.ones(CHANNELS, device=ops.device), across_heads=True)
        cache = Cache(ops, sink, window)
        for past in range(chunk):
            part = slice(past * CHUNK, (past + 1) * CHUNK)
            cache.write(k[:, part], v[:, part], norm)
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        rows.append((q[:, part], k[:, part], v[:, part], cache, positions_of(chunk)))
        own = KV(rotated(ops, k[:, part], norm, rows[-1][4]), heads_of(v[:, part]))
        alone += ops.attention(rotated(ops, q[:, part], norm, rows[-1][4]), (cache.read(), own))

    q, k, v = (torch.cat([row[i] for row in rows]) for i in range(3))
    at = torch.stack([row[4] for row in rows])
    caches = [row[3] for row in rows]
    slots = Rope.from_positions(torch.stack([cache.positions for cache in caches]), AXES).to(ops.device)
    lengths = torch.tensor([cache.filled for cache in caches], device=ops.device)
    assert len(set(lengths.tolist())) == 2
    past = KV(torch.cat([c.k for c in caches]), torch.cat([c.v for c in caches]), lengths, slots)
    (together,) = ops.attention(rotated(ops, q, norm, at), (past, KV(rotated(ops, k, norm, at), heads_of(v))))
    assert error(together, torch.cat(alone)) <= TOLERANCE


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_several_chunks_at_once_behind_a_cache(ops, offset):
    """The cache is seen whole, the chunks that follow by blocks; queries may be the last of them alone."""
    q, k, v, norm = clip(ops)
    cache = Cache(ops, 0, 4)
    for past in range(4):
        part = slice(past * CHUNK, (past + 1) * CHUNK)
        cache.write(k[:, part], v[:, part], norm)
    at = torch.cat([positions_of(chunk) for chunk in range(4, 7)])
    new = slice(4 * CHUNK, 7 * CHUNK)
    own = KV(rotated(ops, k[:, new], norm, at), heads_of(v[:, new]))
    queries = rotated(ops, q[:, new], norm, at)[:, :, offset * CHUNK :]
    (got,) = ops.attention(queries, (cache.read(), own), causal=BlockCausal(CHUNK, offset * CHUNK))
    at_once = whole(ops, q, k, v, norm, causal=BlockCausal(CHUNK))[:, (4 + offset) * CHUNK :]
    assert error(got, at_once) <= TOLERANCE
