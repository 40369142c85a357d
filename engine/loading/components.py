"""Loads a model's parts, each from its own folder, when they are first needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from kinema.buffers.heap import return_freed_bytes
from kinema.errors import RequestError
from kinema.families.base import Denoiser, Half, Model, Part, PartFiles, VideoCoder
from kinema.families.registry import open_component
from kinema.fields.values import kind
from kinema.loading.options import LoadOptions
from kinema.ops import Ops, build_ops, plan_ops, target_for
from kinema.ops.common import QuantKind
from kinema.ops.common.threads import using_threads
from kinema.ops.running import running
from kinema.schedulers import Scheduler, core_from_config, core_of

Path = str | os.PathLike[str]


def load_transformer(
    path: Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    variant: str | None = None,
    quantize_attention: QuantKind | None = None,
) -> Any:
    """A transformer alone, from its component folder, callable as the diffusers class."""
    return _load_alone(
        path, "transformer", LoadOptions(device, backend, precision, variant, quantize_attention=quantize_attention)
    )


def load_vae(
    path: Path, *, device: str = "auto", backend: str = "auto", precision: str = "auto", variant: str | None = None
) -> VideoCoder:
    """A VAE alone: `.decode(latents)`, `.encode(video)`."""
    vae: VideoCoder = _load_alone(path, "vae", LoadOptions(device, backend, precision, variant))
    return vae


def load_text_encoder(
    path: Path, *, device: str = "auto", backend: str = "auto", precision: str = "auto", variant: str | None = None
) -> Any:
    """A text encoder alone: `(input_ids, attention_mask) → last_hidden_state`."""
    return _load_alone(path, "text_encoder", LoadOptions(device, backend, precision, variant))


def ops_for(options: LoadOptions) -> Ops:
    """The ops that a model loaded with these options calls."""
    return build_ops(
        plan_ops(target_for(options.device, options.precision), options.backend, options.quantize_attention)
    )


def _load_alone(path: Path, name: str, options: LoadOptions) -> Any:
    part, component = open_component(path, name)
    made = _built(part, part.open(component, options.variant), ops_for(options))
    return made if part.facade is None else part.facade(made)


def _built(part: Part, files: PartFiles, ops: Ops) -> Any:
    with using_threads(None):  # torch's operators as well: weights are large where a clip may be small
        made = part.build(files, ops)
    if part.tensors is not None and part.half is None:  # halves are packed later
        return_freed_bytes()  # packing leaves holes in the heap, for 8-bit weights up to three times their size
    return made


class Components(Mapping[str, Any]):
    """The parts of one model. A part is loaded when it is first asked for and kept until released.

    Threads may share it: a part is loaded once, and whoever asks for it meanwhile waits. As a mapping it gives what
    the `kinema.load_*` functions give.
    """

    def __init__(self, model: Model, ops: Ops, options: LoadOptions) -> None:
        self.model, self.folder = model, model.folder
        self.ops = ops
        self.scheduler = Scheduler(core_from_config(self.folder.component("scheduler").config))
        self._options = options
        self._loaded: dict[str, Any] = {}
        self._given: set[str] = set()
        self._lock = threading.RLock()
        self._loading = threading.local()

    def __contains__(self, name: object) -> bool:
        return name in self.folder or name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.folder.components, *self._given)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        if name == "scheduler":
            return self.scheduler
        with running(f"loading the {name}", self._options.threads):
            part = self.part(name)
        facade = self.model.parts[name].facade
        return part if facade is None else facade(part)

    def use(self, ops: Ops) -> None:
        """Compute by these functions from now on. Parts that hold others are loaded again when they are next wanted;
        one that was loaded elsewhere keeps its own.
        """
        with self._lock:
            before, self.ops = self.ops, ops
            kept_by_parts = (name for name in ops._planned or before._planned if name != "scheduler_step")
            if any(getattr(ops, name) is not getattr(before, name) for name in kept_by_parts):
                self._loaded = {name: part for name, part in self._loaded.items() if name in self._given}

    def replace(self, name: str, part: Any) -> None:
        """Use a part that was loaded elsewhere instead of the folder's. RequestError if it does not fit."""
        if name == "scheduler":
            self.scheduler = Scheduler(core_of(part))
            return
        record = self.model.parts.get(name)
        another = name not in self.folder and record is self.model.parts[self.model.experts[0]]
        if record is None or another:
            raise RequestError(f"this model has no {name}: its parts are {', '.join(self)}")
        part = part.model if record.facade is not None and isinstance(part, record.facade) else part
        if not isinstance(part, record.kind):
            raise RequestError(
                f"{name} is {kind(part)}: wanted a part that kinema loaded (kinema.load_transformer, load_vae, "
                "load_text_encoder, or another pipeline's); save another library's in the model folder"
            )
        if record.read_config is not None:
            self._check_fits(name, part, record.read_config)
        with self._lock:
            self._loaded[name] = part
            self._given.add(name)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts that are in memory now."""
        return tuple(self._loaded)

    def loading(self) -> float:
        """Seconds that this thread has waited for parts so far: a clock for `Stats.stage`."""
        return getattr(self._loading, "seconds", 0.0)

    def release(self, *names: str) -> None:
        """Release what a stage has finished with: its parts or, where those are kept, only their activation buffers."""
        for name in names:
            part = self._loaded.get(name)
            if not self._options.keep_loaded and name not in self._given:
                self._loaded.pop(name, None)
            elif name in self.model.experts and part is not None:
                part.release()

    def transformer(self, expert: str = "transformer") -> Denoiser:
        denoiser: Denoiser = self.part(expert)
        return denoiser

    def vae(self, half: Half) -> VideoCoder:
        """The VAE, with the half that the caller is about to use packed."""
        vae: VideoCoder = self.part("vae")
        if not vae.packed(half):
            with self._exclusively():
                vae.pack(half)
        return vae

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Normalised latents of a video [1, 3, T, H, W] in [−1, 1]; the VAE is released."""
        with self.using("vae"):
            vae = self.vae("encoder")
            return vae.normalize(vae.encode(video).mode())

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """A part for the block, and released after it."""
        try:
            yield self.part(name)
        finally:
            self.release(name)

    def part(self, name: str) -> Any:
        part = self._loaded.get(name)
        if part is None:
            with self._exclusively():
                part = self._loaded.get(name)
                if part is None:
                    if not self._options.keep_loaded:
                        return_freed_bytes()  # those of the last stage's parts, to which nothing refers by now
                    part = self._loaded[name] = self._load(name)
        return part

    def _load(self, name: str) -> Any:
        record = self.model.parts[name]
        files = record.open(self.folder.component(name), self.folder.variant(name, self._options.variant))
        return _built(record, replace(files, beside=self.model.configs), self.ops)

    def _check_fits(self, name: str, part: Any, read_config: Callable[[Mapping[str, Any]], Any]) -> None:
        own = read_config(self.folder.component(name).config) if name in self.folder else part.config
        for field in fields(own):
            wanted, got = getattr(own, field.name), getattr(part.config, field.name)
            if wanted != got:
                raise RequestError(f"{name} has {field.name}={got}, the model's has {wanted}: wanted the same")
        device = part.ops.device if hasattr(part, "ops") else part.device
        if device != self.ops.device:
            raise RequestError(f"{name} is on {device}, the pipeline on {self.ops.device}: load both with one device=")

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """No other thread loads meanwhile. Waiting for one counts as loading by this thread."""
        start = time.perf_counter()
        with self._lock:
            try:
                yield
            finally:
                self._loading.seconds = self.loading() + time.perf_counter() - start
