"""What a question to a GPU is: one file in questions/, with one `QUESTION`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
MAX_LIMIT = 60.0  # seconds: a question that wants more is two questions


@dataclass(frozen=True)
class Activity:
    """Something that a GPU did: a kernel, a copy or a fill. start: seconds after the first of its profile."""

    name: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Peak:
    """Bytes of a GPU's memory. before: held by tensors when a call began; allocated: the most that tensors held during
    it; reserved: the most that the allocator held, which is what the GPU must have."""

    before: int
    allocated: int
    reserved: int


class Session(Protocol):
    """What a question is given: a GPU, or a CPU that stands in for one (`dry`)."""

    device: torch.device
    dry: bool
    folder: Path
    """For what is built or recorded on the way; files here are kept with the results."""

    def pick(self, full: T, small: T) -> T:
        """`full` on a GPU; `small` in a dry run, where Triton is interpreted and everything must take seconds."""
        ...

    def seconds(self, call: Callable[[], Any], *, samples: int = 9, flush: bool = True) -> list[float]:
        """Seconds of each of `samples` calls after warm-up, by the GPU's own clock; flush: with cold caches."""
        ...

    def host_seconds(self, call: Callable[[], Any], *, samples: int = 9, calls: int = 50) -> list[float]:
        """Seconds that the host takes to issue a call, without waiting for the GPU."""
        ...

    def profile(self, call: Callable[[], Any]) -> list[Activity]:
        """What the GPU does for one call, in order of start; in a dry run, what torch does on the CPU."""
        ...

    def record(self, call: Callable[[], Any]) -> Callable[[], None]:
        """`call`, which has run before, as a CUDA graph: returns what replays it; in a dry run, `call` itself."""
        ...

    def peak(self, call: Callable[[], Any]) -> Peak:
        """The memory that one call takes at its peak. The allocator's cache is emptied first."""
        ...

    def clocks(self) -> dict[str, float]:
        """The GPU now: "sm_mhz", "memory_mhz", "watts", "celsius"; what cannot be read is left out."""
        ...

    def check(
        self, case: str, result: Any, truth: Any, *, plain: Any = None, quantized: torch.dtype | None = None
    ) -> bool:
        """Whether `result` is near enough to its float64 `truth` to be timed; else its refusal is reported.

        By the yardstick of bench/gate.py. plain: what plain PyTorch gives in the same precision (None: the truth, exact
        but for a last rounding). quantized: the 8-bit dtype that something is rounded to on the way.
        """
        ...

    def report(self, case: str, **fields: Any) -> None:
        """One result, written at once. fields: numbers, texts, lists of samples; names of seconds end in "seconds"."""
        ...

    def skip(self, case: str, reason: str) -> None:
        """A case that cannot be asked here, and why."""
        ...


@dataclass(frozen=True)
class Question:
    """One question. Its file's name is its name.

    decides: what the answer settles, in a sentence. serves: the part of kinema that needs it. value: 1 to 10, what the
    answer is worth. seconds: what it is expected to take on a GPU, first use included; limit: when it is stopped.
    needs: modules and programs without which it is skipped, with that as the reason. first: all others build on it.
    """

    decides: str
    serves: str
    value: float
    seconds: float
    ask: Callable[[Session], None]
    limit: float = MAX_LIMIT
    needs: Sequence[str] = ()
    first: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= self.limit <= MAX_LIMIT:
            raise ValueError(f"{self.seconds} of {self.limit} seconds: wanted more than 0, at most {MAX_LIMIT}")
