"""A diffusers-format pipeline folder: model_index.json and one folder per component.

What a folder may name is decided here, by our own table: nothing is ever imported by a name from a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from kinema.checkpoints.component_files import ComponentFiles, check_variant_name, variant_advice, variants
from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.layouts import fetch, other_layout
from kinema.checkpoints.opening import is_file, is_folder, names_in
from kinema.config import JsonObject, Range, from_config
from kinema.errors import CheckpointError, cut, listed, shown

MODEL_INDEX = "model_index.json"
# `VideoPipeline.from_pretrained("sample")`: the model that ships in the package (./sample is a local folder)
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).resolve().parent.parent / "sample" / "model"


@dataclass(frozen=True)
class Slot:
    """What may stand in one place of a pipeline: the classes that kinema implements.

    supersets: classes whose folders hold such a component and more; config.json may name them.
    """

    library: str
    classes: tuple[str, ...]
    config_file: str = "config.json"
    supersets: tuple[str, ...] = ()


_TRANSFORMER = Slot("diffusers", ("WanTransformer3DModel",))

SLOTS: dict[str, Slot] = {
    "transformer": _TRANSFORMER,
    "transformer_2": _TRANSFORMER,
    "vae": Slot("diffusers", ("AutoencoderKLWan",)),
    "text_encoder": Slot(
        "transformers", ("UMT5EncoderModel",), supersets=("UMT5Model", "UMT5ForConditionalGeneration")
    ),
    "tokenizer": Slot(
        "transformers",
        ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
        "tokenizer_config.json",
    ),
    "image_encoder": Slot("transformers", ("CLIPVisionModel", "CLIPVisionModelWithProjection")),
    "image_processor": Slot(
        "transformers",
        ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
        "preprocessor_config.json",
    ),
    "scheduler": Slot(
        "diffusers",
        (
            "FlowMatchEulerDiscreteScheduler",
            "UniPCMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DDIMScheduler",
        ),
        "scheduler_config.json",
    ),
}

PIPELINES = ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline")


@dataclass(frozen=True)
class PipelineOptions:
    """What model_index.json says beside its components.

    boundary_ratio: transformer denoises timesteps of at least this share of the training steps,
    transformer_2 the rest (Wan 2.2 A14B). expand_timesteps: timesteps are per token (Wan 2.2 TI2V-5B).
    """

    boundary_ratio: Annotated[float, Range(0, 1)] | None = None
    expand_timesteps: bool = False


@dataclass(frozen=True)
class Component:
    """One component folder; its weights are not touched until `files` is called."""

    name: str
    class_name: str
    folder: Path
    config: dict[str, Any]

    def files(self, variant: str | None = None) -> ComponentFiles:
        return ComponentFiles(self.folder, variant)


class ModelFolder:
    """A pipeline folder on disk, checked as far as that goes without opening weights.

    `path` is a local folder, or "sample" for the model that ships with kinema.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        packaged = isinstance(path, str) and path == SAMPLE
        self.path = SAMPLE_FOLDER if packaged else _local_folder(path)
        if packaged and not is_file(self.path / MODEL_INDEX):
            raise CheckpointError(
                f"the sample model is not in this installation ({self.path}): reinstall kinema, or train it with "
                "`kinema train-sample`"
            )
        if not is_file(self.path / MODEL_INDEX):
            raise CheckpointError(_not_a_pipeline(self.path))
        index = self.index = read_object(self.path / MODEL_INDEX)
        where = self.path / MODEL_INDEX
        self.pipeline_class = _pipeline_class(index, where)
        public = {key: value for key, value in index.items() if not key.startswith("_")}
        self._classes = _component_classes({k: v for k, v in public.items() if isinstance(v, list)}, where)
        options = {k: v for k, v in public.items() if not isinstance(v, list) and v is not None}
        self.options = from_config(PipelineOptions, JsonObject(options, str(where)))
        self._components: dict[str, Component] = {}
        _check_complete(self._classes, self.path)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components that this folder has."""
        return tuple(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def component(self, name: str) -> Component:
        """A part with its config, which is read once: what is loaded later is what was opened."""
        if name not in self._classes:
            raise CheckpointError(f"{self.path} has no {name}: it has {', '.join(self._classes)}")
        if name not in self._components:
            self._components[name] = _read_component(name, self._classes[name], self.path / name)
        return self._components[name]

    def variant(self, name: str, wanted: str | None) -> str | None:
        """The variant to load of a part: None, the plain files, where it has none of those that are wanted.

        diffusers does the same: what is published as fp16 may be so in some parts only.
        """
        return wanted if wanted is not None and wanted in variants(self.path / name) else None

    def check_variant(self, wanted: str | None) -> None:
        """CheckpointError if no part has weights of this variant."""
        if wanted is None:
            return
        check_variant_name(wanted)
        found = {variant for name in self._classes for variant in variants(self.path / name)}
        if wanted not in found:
            raise CheckpointError(
                f"no part of {self.path} has weights of the variant {wanted!r}: {variant_advice(found)}"
            )

    def __repr__(self) -> str:
        return f"ModelFolder({str(self.path)!r}, {self.pipeline_class})"


def open_component(path: str | os.PathLike[str], name: str) -> Component:
    """A component folder on its own, `name` being what it is in a pipeline ("vae", "transformer", ...)."""
    slot = SLOTS[name]
    folder = _local_folder(path)
    if is_file(folder / MODEL_INDEX):
        raise CheckpointError(f"{folder} is a whole pipeline: wanted its {name} folder, such as {folder / name}")
    if not is_file(folder / slot.config_file):
        raise CheckpointError(
            f"{folder} is not a {name} folder: it has no {slot.config_file}; {other_layout(folder) or _listing(folder)}"
        )
    config = read_object(folder / slot.config_file)
    declared = _declared_class(config)
    if declared is None:
        raise CheckpointError(
            f"{folder / slot.config_file} does not say its class (_class_name or architectures): wanted "
            f"{' or '.join(slot.classes)}"
        )
    return _read_component(name, declared if declared in slot.classes else slot.classes[0], folder)


def _read_component(name: str, class_name: str, folder: Path) -> Component:
    slot = SLOTS[name]
    where = folder / slot.config_file
    # a tokenizer may be no more than its vocabulary
    config = {} if name == "tokenizer" and not is_file(where) else read_object(where)
    declared = _declared_class(config)
    if declared is not None and declared not in (*slot.classes, *slot.supersets):
        raise CheckpointError(
            f"{where} is of class {shown(declared)}, which kinema does not implement as {name}: wanted "
            f"{' or '.join(slot.classes)}"
        )
    if slot.library == "diffusers" and declared is not None and declared != class_name:
        raise CheckpointError(f"{where} is of class {declared}, {MODEL_INDEX} says {class_name}: one of them is wrong")
    return Component(name, class_name, folder, config)


def _declared_class(config: Mapping[str, Any]) -> str | None:
    """The class that a component's own config names, in diffusers' or transformers' way."""
    declared = config.get("_class_name")
    architectures = config.get("architectures")
    if "_class_name" not in config and isinstance(architectures, list) and architectures:
        declared = architectures[0]
    return declared if declared is None or isinstance(declared, str) else shown(declared)


def _local_folder(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise CheckpointError(f"the model is given as {shown(path)}: wanted the path of a folder, or {SAMPLE!r}")
    folder = Path(path)
    if is_folder(folder):
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckpointError(f"{folder} cannot be read: permission denied")
        return folder
    if is_file(folder):
        known = other_layout(folder)
        raise CheckpointError(
            f"{folder} is a file: wanted a folder in the diffusers format, the one with {MODEL_INDEX}"
            + (f"; {known}" if known else "")
        )
    raise CheckpointError(
        f"there is no folder {cut(str(folder), 1000)!r}: kinema reads local folders in the diffusers format and "
        f'downloads nothing; download the model first{_how_to_fetch(str(path))} and give its folder, or "{SAMPLE}"'
    )


def _how_to_fetch(path: str) -> str:
    """Where a path looks like the name of a repository. It may be pasted into a shell."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path, re.ASCII):
        return ""
    original = path.startswith("Wan-AI/") and not path.lower().endswith("-diffusers")
    return f" ({fetch(f'{path}-Diffusers' if original else path)})"


def _not_a_pipeline(folder: Path) -> str:
    known = other_layout(folder)
    config = next((slot.config_file for slot in SLOTS.values() if is_file(folder / slot.config_file)), None)
    if known is None and config is not None:
        return (
            f"{folder} holds one component ({config}), wanted a whole pipeline: give the folder above "
            f"it, the one with {MODEL_INDEX}, or load the component alone (kinema.load_transformer, load_vae, "
            "load_text_encoder)"
        )
    return f"{folder} is not a pipeline in the diffusers format: it has no {MODEL_INDEX}; {known or _listing(folder)}"


def _listing(folder: Path) -> str:
    names = names_in(folder)
    return f"it holds {listed(names, most=20)}" if names else "it is empty"


def _pipeline_class(index: Mapping[str, Any], where: Path) -> str:
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise CheckpointError(f"{where} is of pipeline class {shown(name)}: kinema knows {', '.join(PIPELINES)}")
    return str(name)


def _component_classes(entries: Mapping[str, Any], where: Path) -> dict[str, str]:
    """{component: class} of what is there, in our table's order."""
    classes = {}
    for name, value in entries.items():
        if value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(part, str) for part in value):
            raise CheckpointError(
                f"{where}: {cut(name, 100)} is {shown(value)}, wanted [library, class] or [null, null]"
            )
        library, class_name = value
        if name not in SLOTS:
            raise CheckpointError(
                f"{where} has a component {shown(name)} ({cut(class_name, 100)}), which kinema does not know: it knows "
                f"{', '.join(SLOTS)}"
            )
        slot = SLOTS[name]
        if library != slot.library or class_name not in slot.classes:
            raise CheckpointError(
                f"{where}: {name} is {cut(library, 100)}.{cut(class_name, 100)}, which kinema does not implement: "
                f"wanted {slot.library}.{' or '.join(slot.classes)}"
            )
        classes[name] = class_name
    return {name: classes[name] for name in SLOTS if name in classes}


def _check_complete(classes: Mapping[str, str], path: Path) -> None:
    missing = [name for name in ("vae", "scheduler") if name not in classes]
    if "transformer" not in classes and "transformer_2" not in classes:
        missing.insert(0, "transformer")
    if missing:
        raise CheckpointError(f"{path / MODEL_INDEX} lacks {', '.join(missing)}: a video cannot be made without")
    absent = [name for name in classes if not is_folder(path / name)]
    if absent:
        raise CheckpointError(
            f"{path} lacks the folders {', '.join(absent)} that its {MODEL_INDEX} names; download the folder again"
        )
