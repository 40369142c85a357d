"""Loads a model's parts, each from its own folder, when they are first needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, TypeVar, cast

from kinema.checkpoints import Component, ModelFolder, open_component
from kinema.errors import RequestError
from kinema.image.clip import CLIPVisionConfig, CLIPVisionEncoder
from kinema.image.preprocess import ClipPreprocessor
from kinema.machine_memory import return_freed_bytes
from kinema.models.facade import TransformerFacade
from kinema.models.wan import WanConfig, WanTransformer
from kinema.ops import Ops, build_ops, plan_ops, target_for
from kinema.ops.common import QuantKind
from kinema.options import LoadOptions
from kinema.parts import open_part
from kinema.running import running
from kinema.schedulers import Scheduler, core_from_config, core_of
from kinema.text.tokenizer import Tokenizer
from kinema.text.umt5 import UMT5Config, UMT5Encoder
from kinema.vae.wan import WanVAE, WanVAEConfig
from kinema.values import kind

Path = str | os.PathLike[str]
Part = TypeVar("Part")


def load_transformer(
    path: Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    variant: str | None = None,
    quantize_attention: QuantKind | None = None,
) -> TransformerFacade:
    """A transformer alone, from its component folder, callable as the diffusers class."""
    options = LoadOptions(device, backend, precision, variant, quantize_attention=quantize_attention)
    return TransformerFacade(_transformer(open_component(path, "transformer"), ops_for(options), variant))


def load_vae(
    path: Path, *, device: str = "auto", backend: str = "auto", precision: str = "auto", variant: str | None = None
) -> WanVAE:
    """A VAE alone: `.decode(latents)`, `.encode(video)`."""
    options = LoadOptions(device, backend, precision, variant)
    return _vae(open_component(path, "vae"), ops_for(options), variant)


def load_text_encoder(
    path: Path, *, device: str = "auto", backend: str = "auto", precision: str = "auto", variant: str | None = None
) -> UMT5Encoder:
    """A text encoder alone: `(input_ids, attention_mask) → last_hidden_state`."""
    options = LoadOptions(device, backend, precision, variant)
    return _text_encoder(open_component(path, "text_encoder"), ops_for(options), variant)


def ops_for(options: LoadOptions) -> Ops:
    """The ops that a model is loaded for."""
    return build_ops(
        plan_ops(target_for(options.device, options.precision), options.backend, options.quantize_attention)
    )


def _transformer(component: Component, ops: Ops, variant: str | None) -> WanTransformer:
    return _packed(WanTransformer(*open_part(component, variant), ops))


def _vae(component: Component, ops: Ops, variant: str | None) -> WanVAE:
    return WanVAE(*open_part(component, variant), ops)


def _text_encoder(component: Component, ops: Ops, variant: str | None) -> UMT5Encoder:
    return _packed(UMT5Encoder(*open_part(component, variant), ops))


def _image_encoder(component: Component, ops: Ops, variant: str | None) -> CLIPVisionEncoder:
    return _packed(CLIPVisionEncoder(*open_part(component, variant), ops))


def _packed(part: Part) -> Part:
    """Packing leaves the heap full of holes: natively, of 8-bit weights up to three times what they take."""
    return_freed_bytes()
    return part


def _tokenizer(component: Component, ops: Ops, variant: str | None, rows: int | None) -> Tokenizer:
    return Tokenizer.from_folder(component.folder, rows)


def _image_processor(component: Component, ops: Ops, variant: str | None) -> ClipPreprocessor:
    return ClipPreprocessor.from_folder(component.folder)


# slot: the class of its part, the class of its configuration, and what loads it
PARTS: dict[str, tuple[type[Any], type[Any] | None, Callable[..., Any]]] = {
    "transformer": (WanTransformer, WanConfig, _transformer),
    "transformer_2": (WanTransformer, WanConfig, _transformer),
    "vae": (WanVAE, WanVAEConfig, _vae),
    "text_encoder": (UMT5Encoder, UMT5Config, _text_encoder),
    "tokenizer": (Tokenizer, None, _tokenizer),
    "image_encoder": (CLIPVisionEncoder, CLIPVisionConfig, _image_encoder),
    "image_processor": (ClipPreprocessor, None, _image_processor),
}


class Components(Mapping[str, Any]):
    """The parts of one model folder. A part is loaded when it is first asked for and kept until released.

    Threads may share it: a part is loaded once, and whoever asks for it meanwhile waits. As a mapping it gives what
    the `kinema.load_*` functions give.
    """

    def __init__(self, folder: ModelFolder, ops: Ops, options: LoadOptions) -> None:
        self.folder = folder
        self.ops = ops
        self.scheduler = Scheduler(core_from_config(folder.component("scheduler").config))
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
            part = self._part(name)
        return TransformerFacade(part) if isinstance(part, WanTransformer) else part

    def replace(self, name: str, part: Any) -> None:
        """Take a part that was loaded elsewhere, in the place of the folder's. RequestError if it does not fit."""
        if name == "scheduler":
            self.scheduler = Scheduler(core_of(part))
            return
        part = part.model if isinstance(part, TransformerFacade) else part
        wanted, config_class, _ = PARTS[name]
        if not isinstance(part, wanted):
            raise RequestError(
                f"{name} is {kind(part)}: wanted a part that kinema loaded (kinema.load_transformer, load_vae, "
                "load_text_encoder, or another pipeline's); save another library's in the model folder"
            )
        if wanted is WanTransformer and name not in self.folder:
            raise RequestError(f"this model has no {name}: wanted one for what it has, {', '.join(self)}")
        if config_class is not None:
            self._check_fits(name, part, config_class)
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
        """Let go of parts that a stage is done with or, where they are to be kept, of their maps alone."""
        for name in names:
            part = self._loaded.get(name)
            if not self._options.keep_loaded and name not in self._given:
                self._loaded.pop(name, None)
            elif isinstance(part, WanTransformer):
                part.maps.release()

    def transformer(self, expert: str = "transformer") -> WanTransformer:
        return cast("WanTransformer", self._part(expert))

    def vae(self, half: Literal["encoder", "decoder"]) -> WanVAE:
        """The VAE, with the half that the caller is about to use packed."""
        vae = cast("WanVAE", self._part("vae"))
        if half not in vars(vae):
            with self._alone():
                getattr(vae, half)
        return vae

    def text_encoder(self) -> UMT5Encoder:
        return cast("UMT5Encoder", self._part("text_encoder"))

    def image_encoder(self) -> CLIPVisionEncoder:
        return cast("CLIPVisionEncoder", self._part("image_encoder"))

    def tokenizer(self) -> Tokenizer:
        return cast("Tokenizer", self._part("tokenizer"))

    def image_preprocessor(self) -> ClipPreprocessor:
        return cast("ClipPreprocessor", self._part("image_processor"))

    def _part(self, name: str) -> Any:
        load = PARTS[name][2]
        variant = self.folder.variant(name, self._options.variant)
        more = (self._text_rows(),) if name == "tokenizer" else ()
        return self._get(name, lambda component: load(component, self.ops, variant, *more))

    def _text_rows(self) -> int | None:
        """Rows of the text encoder's table, which bound the ids of a tokenizer."""
        if "text_encoder" not in self.folder:
            return None
        return UMT5Config.from_dict(self.folder.component("text_encoder").config).vocab_size

    def _get(self, name: str, load: Callable[[Component], Any]) -> Any:
        part = self._loaded.get(name)
        if part is None:
            with self._alone():
                part = self._loaded.get(name)
                if part is None:
                    if not self._options.keep_loaded:
                        return_freed_bytes()  # of the parts of the stage before, which nothing refers to by now
                    part = self._loaded[name] = load(self.folder.component(name))
        return part

    def _check_fits(self, name: str, part: Any, config_class: type[Any]) -> None:
        own = config_class.from_dict(self.folder.component(name).config) if name in self.folder else part.config
        for field in fields(config_class):
            wanted, got = getattr(own, field.name), getattr(part.config, field.name)
            if wanted != got:
                raise RequestError(f"{name} has {field.name}={got}, the model's has {wanted}: wanted one of its shape")
        device = part.device if isinstance(part, WanVAE) else part.ops.device
        if device != self.ops.device:
            raise RequestError(f"{name} is on {device}, the pipeline on {self.ops.device}: load both with one device=")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread loads meanwhile; waiting for one and loading count as one's own loading."""
        start = time.perf_counter()
        with self._lock:
            try:
                yield
            finally:
                self._loading.seconds = self.loading() + time.perf_counter() - start
