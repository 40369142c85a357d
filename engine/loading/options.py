"""How a model is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from kinema.errors import RequestError
from kinema.fields.values import Check, check_fields, flag, whole, word


@dataclass(frozen=True)
class LoadOptions:
    """`from_pretrained`'s options.

    device: auto, cpu or cuda[:n]. backend: auto, or one that `kinema doctor` lists: reference, triton, torch, …
    precision: auto, fp32, bf16, fp16, fp8 or int8. variant: the middle name of weight files (fp16). keep_loaded: keep
    components in memory after their stage; without it the peak is the largest stage. threads: CPU threads of this
    pipeline's calls, at most the machine's cores, None for torch's number; other pipelines keep theirs.
    cuda_graphs: on a GPU, replay forwards as CUDA graphs; each keeps the memory of a forward for itself.
    quantize_attention: None, or the type of the transformer's self-attention products: "int8" on a CPU, "fp8" on a GPU.
    Lossy; a backend that has no kernel for it is an error.
    replay: record forwards and replay them, which spares the host's part: on a CPU those of small clips, on a GPU all.
    """

    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    variant: str | None = None
    keep_loaded: bool = True
    threads: int | None = None
    cuda_graphs: bool = True
    quantize_attention: Literal["fp8", "int8"] | None = None
    replay: bool = True

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)


def _device(name: str, value: Any) -> str:
    """A torch.device by its name."""
    if not isinstance(value, str):
        import torch  # not above: the command line says what is wrong before it waits for torch

        value = str(value) if isinstance(value, torch.device) else value
    return word(name, value)


def _threads(name: str, value: Any) -> int:
    cores = os.cpu_count() or 1
    try:
        return whole(name, value, high=cores)
    except RequestError as error:
        raise RequestError(f"{error}, the cores of this machine") from None


_CHECKS: dict[str, Check] = {
    "device": _device,
    **dict.fromkeys(("backend", "precision", "variant", "quantize_attention"), word),
    **dict.fromkeys(("keep_loaded", "cuda_graphs", "replay"), flag),
    "threads": _threads,
}
