"""A diffusers-format pipeline folder: model_index.json and one folder per component.

A folder may name the classes of the known formats and no others: nothing is ever imported by a name from a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema.checkpoints.component_files import ComponentFiles, check_variant_name, variant_advice, variants
from kinema.checkpoints.folder_format import FolderFormat, Slot
from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.layouts import fetch, other_layout
from kinema.checkpoints.opening import is_file, is_folder, names_in
from kinema.errors import CheckpointError, cut, listed, shown
from kinema.fields.config import JsonObject, from_config

MODEL_INDEX = "model_index.json"
# `VideoPipeline.from_pretrained("sample")`: the model that ships in the package (./sample is a local folder)
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).resolve().parent.parent / "sample" / "model"


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
    """A pipeline folder on disk, checked as far as is possible without opening weights.

    `path` is a local folder, or "sample" for the model that ships with kinema.
    """

    def __init__(self, path: str | os.PathLike[str], formats: Sequence[FolderFormat]) -> None:
        packaged = isinstance(path, str) and path == SAMPLE
        self.path = SAMPLE_FOLDER if packaged else _local_folder(path, formats)
        if packaged and not is_file(self.path / MODEL_INDEX):
            raise CheckpointError(
                f"the sample model is not in this installation ({self.path}): reinstall kinema, or train it with "
                "`kinema train-sample`"
            )
        if not is_file(self.path / MODEL_INDEX):
            raise CheckpointError(_not_a_pipeline(self.path, formats))
        index = self.index = read_object(self.path / MODEL_INDEX)
        where = self.path / MODEL_INDEX
        self.pipeline_class, self._format = _pipeline_class(index, where, formats)
        public = {key: value for key, value in index.items() if not key.startswith("_")}
        self._classes = _component_classes(
            {k: v for k, v in public.items() if isinstance(v, list)}, where, self._format.slots
        )
        options = {k: v for k, v in public.items() if not isinstance(v, list) and v is not None}
        self.options: Any = from_config(self._format.options, JsonObject(options, str(where)))
        self._components: dict[str, Component] = {}
        _check_complete(self._classes, self.path, self._format.needed)

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
            slot = self._format.slots[name]
            self._components[name] = _read_component(name, slot, self._classes[name], self.path / name)
        return self._components[name]

    def variant(self, name: str, wanted: str | None) -> str | None:
        """The variant of a part to load: None, the plain files, where the part has no weights of the wanted one.

        As in diffusers: a model may be published in fp16 for some of its parts only.
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


def open_component(path: str | os.PathLike[str], name: str, formats: Sequence[FolderFormat]) -> Component:
    """A component folder on its own. name: its name in a pipeline ("vae", "transformer", ...)."""
    slots = [each.slots[name] for each in formats if name in each.slots]
    if isinstance(path, str) and path == SAMPLE and not is_folder(Path(path)):
        raise CheckpointError(
            f"{SAMPLE!r} is a whole pipeline: wanted the folder of its {name}, {SAMPLE_FOLDER / name}; "
            f'or take it from VideoPipeline.from_pretrained("{SAMPLE}").{name}'
        )
    folder = _local_folder(path, formats)
    slot = next((slot for slot in slots if is_file(folder / slot.config_file)), slots[0])
    if is_file(folder / MODEL_INDEX):
        raise CheckpointError(f"{folder} is a whole pipeline: wanted its {name} folder, such as {folder / name}")
    if not is_file(folder / slot.config_file):
        raise CheckpointError(
            f"{folder} is not a {name} folder: it has no {slot.config_file}; "
            f"{other_layout(folder, formats) or _listing(folder)}"
        )
    config = read_object(folder / slot.config_file)
    declared = _declared_class(config)
    if declared is None:
        raise CheckpointError(
            f"{folder / slot.config_file} does not say its class (_class_name or architectures): wanted "
            f"{' or '.join(slot.classes)}"
        )
    slot = next((each for each in slots if declared in (*each.classes, *each.supersets)), slot)
    return _read_component(name, slot, declared if declared in slot.classes else slot.classes[0], folder)


def _read_component(name: str, slot: Slot, class_name: str, folder: Path) -> Component:
    where = folder / slot.config_file
    config = {} if slot.optional_config and not is_file(where) else read_object(where)
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


def _local_folder(path: str | os.PathLike[str], formats: Sequence[FolderFormat]) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise CheckpointError(f"the model is given as {shown(path)}: wanted the path of a folder, or {SAMPLE!r}")
    folder = Path(path)
    if is_folder(folder):
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckpointError(f"{folder} cannot be read: permission denied")
        return folder
    if is_file(folder):
        known = other_layout(folder, formats)
        raise CheckpointError(
            f"{folder} is a file: wanted a folder in the diffusers format, the one with {MODEL_INDEX}"
            + (f"; {known}" if known else "")
        )
    if os.path.lexists(folder):
        raise CheckpointError(
            f"{cut(str(folder), 1000)} is a device, a socket, a pipe or a broken link: wanted a folder in the "
            "diffusers format"
        )
    raise CheckpointError(
        f"there is no folder {cut(str(folder), 1000)!r}: kinema reads local folders in the diffusers format and "
        f"downloads nothing; download the model first{_how_to_fetch(str(path), formats)} and give its folder, "
        f'or "{SAMPLE}"'
    )


def _how_to_fetch(path: str, formats: Sequence[FolderFormat]) -> str:
    """The command, if the path looks like the name of a repository. It may be pasted into a shell."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path, re.ASCII):
        return ""
    for each in formats:
        path = each.hub_name(path)
    return f" ({fetch(path)})"


def _not_a_pipeline(folder: Path, formats: Sequence[FolderFormat]) -> str:
    known = other_layout(folder, formats)
    slots = [slot for each in formats for slot in each.slots.values()]
    config = next((slot.config_file for slot in slots if is_file(folder / slot.config_file)), None)
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


def _pipeline_class(index: Mapping[str, Any], where: Path, formats: Sequence[FolderFormat]) -> tuple[str, FolderFormat]:
    name = index.get("_class_name")
    for each in formats:
        if name in each.pipelines:
            return str(name), each
    known = [pipeline for each in formats for pipeline in each.pipelines]
    raise CheckpointError(f"{where} is of pipeline class {shown(name)}: kinema knows {', '.join(known)}")


def _component_classes(entries: Mapping[str, Any], where: Path, slots: Mapping[str, Slot]) -> dict[str, str]:
    """{component: class} of the present ones, in the order of `slots`."""
    classes = {}
    for name, value in entries.items():
        if value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(part, str) for part in value):
            raise CheckpointError(
                f"{where}: {cut(name, 100)} is {shown(value)}, wanted [library, class] or [null, null]"
            )
        library, class_name = value
        if name not in slots:
            raise CheckpointError(
                f"{where} has a component {shown(name)} ({cut(class_name, 100)}), which kinema does not know: it knows "
                f"{', '.join(slots)}"
            )
        slot = slots[name]
        if library != slot.library or class_name not in slot.classes:
            raise CheckpointError(
                f"{where}: {name} is {cut(library, 100)}.{cut(class_name, 100)}, which kinema does not implement: "
                f"wanted {slot.library}.{' or '.join(slot.classes)}"
            )
        classes[name] = class_name
    return {name: classes[name] for name in slots if name in classes}


def _check_complete(classes: Mapping[str, str], path: Path, needed: tuple[tuple[str, ...], ...]) -> None:
    missing = [names[0] for names in needed if not any(name in classes for name in names)]
    if missing:
        raise CheckpointError(f"{path / MODEL_INDEX} lacks {', '.join(missing)}: without it no video can be made")
    absent = [name for name in classes if not is_folder(path / name)]
    files = [name for name in absent if os.path.lexists(path / name)]
    if files:
        raise CheckpointError(f"{path / files[0]} is not a folder: wanted that of the {files[0]}; download it again")
    if absent:
        raise CheckpointError(
            f"{path} lacks the folders {', '.join(absent)} that its {MODEL_INDEX} names; download the folder again"
        )
