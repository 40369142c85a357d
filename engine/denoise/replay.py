"""Forwards recorded once and replayed: on a GPU as a CUDA graph, on a CPU as one call of the native library.

A step makes the same calls at the same addresses every time, and for a small clip the host takes as long to make them
as the device to run them. A recording has its own inputs, prompt and rotation, which a replay copies into, so requests,
prompts and seeds share it; the calls that it replays are those of a forward, so its result is the same bits.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch

from kinema.buffers.activations import ActivationBuffers
from kinema.denoise.batching import Rows, joined
from kinema.families.base import (
    MAX_BYTES_RECORDED,
    MAX_TOKENS_PER_FORWARD,
    MAX_TOKENS_RECORDED,
    Context,
    Denoiser,
)
from kinema.ops.common import Rope, native, program
from kinema.ops.common.program import NotRecordable
from kinema.ops.common.threads import thread_count

Body = Callable[[], torch.Tensor]
MAX_RECORDINGS = 64  # of one model
MAX_BYTES_OF_ALL = 256 << 20  # of one model
MAX_SHAPES = 1024  # that are remembered


class RecordableContext(Context, Protocol):
    def clone(self) -> RecordableContext:
        """A copy that shares no memory with it."""
        ...

    def tensors(self) -> list[torch.Tensor]:
        """What it consists of, [R, ...] each; the same of every context of its shape."""
        ...


@runtime_checkable
class Recordable(Denoiser, Protocol):
    """A denoiser whose forwards can be replayed; its contexts are RecordableContexts.

    What is computed of the timesteps alone is `modulations`, which a request does for all its steps at once.
    """

    def modulations(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What timesteps [R] or [R, G] are to the layers: [R, G, ...] each, where the model is."""
        ...

    def forward(
        self,
        latents: torch.Tensor,
        modulations: tuple[torch.Tensor, ...],
        context: Any,
        *,
        rope: Rope | None,
        buffers: ActivationBuffers,
    ) -> torch.Tensor:
        """`__call__` after `modulations`: on a CPU nothing but native calls. What it is given is where the model is."""
        ...


class Recorder(Protocol):
    """Runs or captures a body.

    Returns what replays it, the tensor that it writes, and how many bytes that keeps beside the body's own tensors.
    """

    def __call__(self, body: Body) -> tuple[Callable[[], None], torch.Tensor, int]: ...


def record_on_gpu(body: Body) -> tuple[Callable[[], None], torch.Tensor, int]:
    """A CUDA graph of `body`, which must only launch kernels: nothing may wait for the GPU or come from the host."""
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
    torch.cuda.synchronize()
    # only this thread's calls can spoil it: another's may allocate meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = body()
    return graph.replay, output, torch.cuda.memory_reserved() - before


def record_on_cpu(body: Body) -> tuple[Callable[[], None], torch.Tensor, int]:
    """A program of the native calls of `body`. NotRecordable if it does anything else."""
    recorded, output = program.record(body)
    return recorded, output, recorded.scratch_bytes


class Recording:
    """One forward of rows of one shape, and all that it reads and writes beside weights."""

    def __init__(self, denoiser: Recordable, parts: Sequence[Rows], record: Recorder) -> None:
        device, dtype = denoiser.ops.device, denoiser.ops.dtype
        self._lock = threading.Lock()
        self._buffers = ActivationBuffers(device.type == "cpu")
        with torch.inference_mode(False), torch.no_grad():
            latents, timesteps, context = joined(parts)
            self._latents = latents.to(device, dtype, copy=True)
            self._context: RecordableContext = context.clone()
            self._times = denoiser.modulations(timesteps)
            rope = denoiser.rope(self._latents)  # a cache would let it go

            def body() -> torch.Tensor:
                return denoiser.forward(self._latents, self._times, self._context, rope=rope, buffers=self._buffers)

            self._replay, self._output, self._kept_bytes = record(body)
        self._prompts: list[ref[Context]] = []

    @property
    def nbytes(self) -> int:
        """What it holds for itself alone."""
        own = [self._latents, self._output, *self._times, *self._context.tensors()]
        return sum(int(t.nbytes) for t in own) + self._buffers.nbytes + self._kept_bytes

    def __call__(self, denoiser: Recordable, parts: Sequence[Rows]) -> torch.Tensor:
        """The forward of these rows, [R, C, T, h, w] fp32."""
        with self._lock:
            self._load_prompts([part.context for part in parts])
            taken = 0
            for part in parts:
                rows = slice(taken, taken + part.count)
                part.write(self._latents[rows])
                samples = len(part.timesteps)
                for own, new in zip(self._times, _modulations(denoiser, part), strict=True):
                    own[rows].view(-1, samples, *own.shape[1:]).copy_(new)
                taken += part.count
            self._replay()
            return self._output.clone()

    def _load_prompts(self, contexts: Sequence[Context]) -> None:
        """They are copied where they are others than those of the replay before."""
        held = [known() for known in self._prompts]
        if len(held) == len(contexts) and all(known is given for known, given in zip(held, contexts, strict=True)):
            return
        self._prompts, taken = [], 0  # none, until all of them are there
        for context in contexts:
            for own, new in zip(self._context.tensors(), cast("RecordableContext", context).tensors(), strict=True):
                own[taken : taken + context.rows].copy_(new)
            taken += context.rows
        self._prompts = [ref(context) for context in contexts]


class State(Enum):
    """Of a shape that has no recording."""

    SEEN = 1  # the next forward of it is recorded
    REFUSED = 2  # it cannot be, or takes too much


class Recordings:
    """The recordings of a pipeline's models, of which the least recently used give way. Threads may share them.

    The first forward of a shape is not recorded: on a GPU it compiles kernels, and many a shape comes once. Of threads
    that want the same recording one waits for the other.
    """

    def __init__(self, record: Recorder | None = None) -> None:
        self._record = record
        self._known: WeakKeyDictionary[Denoiser, OrderedDict[Hashable, Recording | State]] = WeakKeyDictionary()
        self._lock, self._recording = threading.Lock(), threading.Lock()

    def __call__(self, denoiser: Denoiser, parts: Sequence[Rows]) -> torch.Tensor | None:
        """The forward of parts of one shape, [R, C, T, h, w]; None where the caller is to run it."""
        known = self._known.get(denoiser)
        if known is None:  # asked once: it takes as long as a replay's copies
            if not isinstance(denoiser, Recordable):
                return None
            with self._lock:
                known = self._known.setdefault(denoiser, OrderedDict())
        if not _may_be_recorded(denoiser, parts):
            return None
        denoiser = cast("Recordable", denoiser)
        rows = sum(part.count for part in parts)
        isa = native.cpu().isa if denoiser.ops.device.type == "cpu" else ""
        key = (rows, parts[0].shape, thread_count(), isa)
        with self._lock:
            found = known.get(key)
            known[key] = State.SEEN if found is None else found
            known.move_to_end(key)
        if found is State.SEEN:
            with self._recording:
                found = known.get(key)  # another thread may have made it meanwhile
                if not isinstance(found, Recording):
                    found = self._new(denoiser, parts)
                    with self._lock:
                        known[key] = found
                        self._make_room(known)
        return found(denoiser, parts) if isinstance(found, Recording) else None

    def release_large(self) -> None:
        """Free those whose memory the next stage may want: a GPU's, where each has that of a forward."""
        with self._lock:
            for known in self._known.values():
                large = [
                    key
                    for key, made in known.items()
                    if isinstance(made, Recording) and made.nbytes > MAX_BYTES_RECORDED
                ]
                known.update(dict.fromkeys(large, State.SEEN))

    def _new(self, denoiser: Recordable, parts: Sequence[Rows]) -> Recording | State:
        on_gpu = denoiser.ops.device.type == "cuda"
        try:
            made = Recording(denoiser, parts, self._record or (record_on_gpu if on_gpu else record_on_cpu))
        except NotRecordable:
            return State.REFUSED
        return made if on_gpu or made.nbytes <= MAX_BYTES_RECORDED else State.REFUSED

    def _make_room(self, known: OrderedDict[Hashable, Recording | State]) -> None:
        sizes = {key: made.nbytes for key, made in known.items() if isinstance(made, Recording)}
        oldest = iter(list(sizes))
        while len(sizes) > MAX_RECORDINGS or (sum(sizes.values()) > MAX_BYTES_OF_ALL and len(sizes) > 1):
            key = next(oldest)
            del sizes[key]
            known[key] = State.SEEN
        while len(known) > MAX_SHAPES:
            known.popitem(last=False)


def _may_be_recorded(denoiser: Denoiser, parts: Sequence[Rows]) -> bool:
    latents = parts[0].latents
    tokens = sum(part.count for part in parts) * latents[0, 0].numel() // math.prod(denoiser.patch_size)
    if denoiser.ops.device.type == "cuda":
        return len(parts) == 1 or tokens <= MAX_TOKENS_PER_FORWARD
    # a function of the caller's own may compute where no recorder sees it
    return tokens <= MAX_TOKENS_RECORDED and denoiser.ops.is_planned and denoiser.ops.plan.backend("linear") == "cpu"


def _modulations(denoiser: Recordable, part: Rows) -> tuple[torch.Tensor, ...]:
    """Of one sample or of each."""
    if part.schedule is None:
        return denoiser.modulations(part.timesteps)
    return part.schedule.embedded(denoiser, part.step)
