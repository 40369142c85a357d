"""Loads a model's parts, each from its own folder, when they are first needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import torch

from kinema.checkpoints import Component, ModelFolder, open_component
from kinema.image.clip import CLIPVisionEncoder
from kinema.image.preprocess import ClipPreprocessor
from kinema.machine_memory import return_freed_bytes
from kinema.models.facade import TransformerFacade
from kinema.models.wan import WanTransformer
from kinema.ops import Ops, build_ops, plan_ops, target_for
from kinema.ops.common import QuantKind
from kinema.options import LoadOptions
from kinema.parts import open_part
from kinema.text.tokenizer import Tokenizer
from kinema.text.umt5 import UMT5Config, UMT5Encoder
from kinema.vae.wan import WanVAE

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
    ops = build_ops(plan_ops(target_for(device, precision), backend, quantize_attention))
    return TransformerFacade(_transformer(open_component(path, "transformer"), ops, variant))


def load_vae(
    path: Path, *, device: str = "auto", backend: str = "auto", precision: str = "auto", variant: str | None = None
) -> WanVAE:
    """A VAE alone: `.decode(latents)`, `.encode(video)`."""
    ops = build_ops(plan_ops(target_for(device, precision), backend))
    return _vae(open_component(path, "vae"), ops, variant)


def load_text_encoder(
    path: Path, *, device: str = "auto", backend: str = "auto", precision: str = "auto", variant: str | None = None
) -> UMT5Encoder:
    """A text encoder alone: `(input_ids, attention_mask) → last_hidden_state`."""
    ops = build_ops(plan_ops(target_for(device, precision), backend))
    return _text_encoder(open_component(path, "text_encoder"), ops, variant)


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


class Components:
    """The parts of one model folder. A part is loaded when it is first asked for and kept until released."""

    def __init__(self, folder: ModelFolder, ops: Ops, options: LoadOptions) -> None:
        self.folder = folder
        self.ops = ops
        self._options = options
        self._loaded: dict[str, Any] = {}
        self._loading = 0.0
        if options.threads is not None:
            torch.set_num_threads(options.threads)

    def __contains__(self, name: str) -> bool:
        return name in self.folder

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts that are in memory now."""
        return tuple(self._loaded)

    def loading(self) -> float:
        """Seconds spent loading parts so far: a clock for `Stats.stage`."""
        return self._loading

    def release(self, *names: str) -> None:
        """Let go of parts that a stage is done with or, where they are to be kept, of their maps alone."""
        for name in names:
            part = self._loaded.get(name)
            if not self._options.keep_loaded:
                self._loaded.pop(name, None)
            elif isinstance(part, WanTransformer):
                part.maps.release()

    def transformer(self, expert: str = "transformer") -> WanTransformer:
        return cast("WanTransformer", self._model(expert, _transformer))

    def vae(self, half: Literal["encoder", "decoder"]) -> WanVAE:
        """The VAE, with the half that the caller is about to use packed."""
        vae = cast("WanVAE", self._model("vae", _vae))
        if half not in vars(vae):
            with self._clock():
                getattr(vae, half)
        return vae

    def text_encoder(self) -> UMT5Encoder:
        return cast("UMT5Encoder", self._model("text_encoder", _text_encoder))

    def image_encoder(self) -> CLIPVisionEncoder:
        return cast("CLIPVisionEncoder", self._model("image_encoder", _image_encoder))

    def tokenizer(self) -> Tokenizer:
        rows = UMT5Config.from_dict(self.folder.component("text_encoder").config).vocab_size
        return cast("Tokenizer", self._get("tokenizer", lambda part: Tokenizer.from_folder(part.folder, rows)))

    def image_preprocessor(self) -> ClipPreprocessor:
        return cast(
            "ClipPreprocessor", self._get("image_processor", lambda part: ClipPreprocessor.from_folder(part.folder))
        )

    def _model(self, name: str, load: Callable[[Component, Ops, str | None], Any]) -> Any:
        variant = self.folder.variant(name, self._options.variant)
        return self._get(name, lambda part: load(part, self.ops, variant))

    def _get(self, name: str, load: Callable[[Component], Any]) -> Any:
        if name not in self._loaded:
            if not self._options.keep_loaded:
                return_freed_bytes()  # of the parts of the stage before, which nothing refers to by now
            with self._clock():
                self._loaded[name] = load(self.folder.component(name))
        return self._loaded[name]

    @contextmanager
    def _clock(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._loading += time.perf_counter() - start
