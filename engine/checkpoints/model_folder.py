"""A diffusers-format pipeline folder: model_index.json and one folder per component.

What a folder may name is decided here, by our own table: nothing is ever imported by a name from a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema.checkpoints.component_files import ComponentFiles
from kinema.checkpoints.json_object import read_object
from kinema.config import from_config
from kinema.errors import CheckpointError

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

    boundary_ratio: float | None = None
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
        self.path = SAMPLE_FOLDER if path == SAMPLE else _local_folder(path)
        if path == SAMPLE and not (self.path / MODEL_INDEX).is_file():
            raise CheckpointError(
                f"the sample model is not in this installation ({self.path}): reinstall kinema, or train it with "
                "`kinema train-sample`"
            )
        if not (self.path / MODEL_INDEX).is_file():
            raise CheckpointError(_not_a_pipeline(self.path))
        index = self.index = read_object(self.path / MODEL_INDEX)
        where = self.path / MODEL_INDEX
        self.pipeline_class = _pipeline_class(index, where)
        public = {key: value for key, value in index.items() if not key.startswith("_")}
        self._classes = _component_classes({k: v for k, v in public.items() if isinstance(v, list)}, where)
        self.options = _options({k: v for k, v in public.items() if not isinstance(v, list)}, where)
        _check_complete(self._classes, self.path)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components that this folder has."""
        return tuple(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def component(self, name: str) -> Component:
        if name not in self._classes:
            raise CheckpointError(f"{self.path} has no {name}: it has {', '.join(self._classes)}")
        return _read_component(name, self._classes[name], self.path / name)

    def __repr__(self) -> str:
        return f"ModelFolder({str(self.path)!r}, {self.pipeline_class})"


def open_component(path: str | os.PathLike[str], name: str) -> Component:
    """A component folder on its own, `name` being what it is in a pipeline ("vae", "transformer", ...)."""
    slot = SLOTS[name]
    folder = _local_folder(path)
    if (folder / MODEL_INDEX).is_file():
        raise CheckpointError(f"{folder} is a whole pipeline: wanted its {name} folder, such as {folder / name}")
    if not (folder / slot.config_file).is_file():
        raise CheckpointError(f"{folder} is not a {name} folder: it has no {slot.config_file}; {_listing(folder)}")
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
    config = {} if name == "tokenizer" and not where.is_file() else read_object(where)
    declared = _declared_class(config)
    if declared is not None and declared not in (*slot.classes, *slot.supersets):
        raise CheckpointError(
            f"{where} is of class {declared!r}, which kinema does not implement as {name}: wanted "
            f"{' or '.join(slot.classes)}"
        )
    if slot.library == "diffusers" and declared is not None and declared != class_name:
        raise CheckpointError(f"{where} is of class {declared}, {MODEL_INDEX} says {class_name}: one of them is wrong")
    return Component(name, class_name, folder, config)


def _declared_class(config: Mapping[str, Any]) -> str | None:
    """The class that a component's own config names, in diffusers' or transformers' way."""
    if "_class_name" in config:
        return str(config["_class_name"])
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return None


def _local_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckpointError(f"{folder} cannot be read: permission denied")
        return folder
    if folder.exists():
        raise CheckpointError(
            f"{folder} is a file: wanted a folder in the diffusers format, the one with {MODEL_INDEX}"
        )
    raise CheckpointError(
        f"there is no folder {str(folder)!r}: kinema reads local folders in the diffusers format and downloads "
        f'nothing; download the model first and give its folder, or "{SAMPLE}"'
    )


def _not_a_pipeline(folder: Path) -> str:
    for slot in SLOTS.values():
        if (folder / slot.config_file).is_file():
            return (
                f"{folder} holds one component ({slot.config_file}), wanted a whole pipeline: give the folder above "
                f"it, the one with {MODEL_INDEX}, or load the component alone (kinema.load_transformer, load_vae, "
                "load_text_encoder)"
            )
    return f"{folder} is not a pipeline in the diffusers format: it has no {MODEL_INDEX}; {_listing(folder)}"


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"it holds {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else "it is empty"


def _pipeline_class(index: Mapping[str, Any], where: Path) -> str:
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise CheckpointError(f"{where} is of pipeline class {name!r}: kinema knows {', '.join(PIPELINES)}")
    return str(name)


def _component_classes(entries: Mapping[str, Any], where: Path) -> dict[str, str]:
    """{component: class} of what is there, in our table's order."""
    classes = {}
    for name, value in entries.items():
        if value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(part, str) for part in value):
            raise CheckpointError(f"{where}: {name} is {value!r}, wanted [library, class] or [null, null]")
        library, class_name = value
        if name not in SLOTS:
            raise CheckpointError(
                f"{where} has a component {name!r} ({class_name}), which kinema does not know: it knows "
                f"{', '.join(SLOTS)}"
            )
        slot = SLOTS[name]
        if library != slot.library or class_name not in slot.classes:
            raise CheckpointError(
                f"{where}: {name} is {library}.{class_name}, which kinema does not implement: wanted "
                f"{slot.library}.{' or '.join(slot.classes)}"
            )
        classes[name] = class_name
    return {name: classes[name] for name in SLOTS if name in classes}


def _options(entries: Mapping[str, Any], where: Path) -> PipelineOptions:
    try:
        options = from_config(PipelineOptions, {key: value for key, value in entries.items() if value is not None})
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    ratio = options.boundary_ratio
    if ratio is not None and (type(ratio) not in (int, float) or not 0 <= ratio <= 1):
        raise CheckpointError(f"{where}: boundary_ratio is {ratio!r}, wanted a number of 0 to 1")
    if type(options.expand_timesteps) is not bool:
        raise CheckpointError(f"{where}: expand_timesteps is {options.expand_timesteps!r}, wanted true or false")
    return options


def _check_complete(classes: Mapping[str, str], path: Path) -> None:
    missing = [name for name in ("vae", "scheduler") if name not in classes]
    if "transformer" not in classes and "transformer_2" not in classes:
        missing.insert(0, "transformer")
    if missing:
        raise CheckpointError(f"{path / MODEL_INDEX} lacks {', '.join(missing)}: a video cannot be made without")
    absent = [name for name in classes if not (path / name).is_dir()]
    if absent:
        raise CheckpointError(
            f"{path} lacks the folders {', '.join(absent)} that its {MODEL_INDEX} names; download the folder again"
        )
