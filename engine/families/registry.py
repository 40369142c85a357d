"""The known model families, each imported when it is first asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from kinema.checkpoints import Component, FolderFormat, ModelFolder
from kinema.checkpoints import open_component as open_component_folder
from kinema.checkpoints.layouts import lora_notice, loras_among, loras_in
from kinema.errors import warn
from kinema.families.base import Family, Model, Part

_HOME = ["kinema.families.wan.family"]
_added: list[Family] = []


def families() -> tuple[Family, ...]:
    return (*(import_module(home).FAMILY for home in _HOME), *_added)


@contextmanager
def registered(family: Family) -> Iterator[None]:
    """Add a family for the length of this block, in every thread."""
    _added.append(family)
    try:
        yield
    finally:
        _added.remove(family)


def formats() -> tuple[FolderFormat, ...]:
    return tuple(family.format for family in families())


def slot_names() -> tuple[str, ...]:
    """The names of pipeline parts, of all families."""
    return tuple(dict.fromkeys(name for each in formats() for name in each.slots))


def open_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """A pipeline folder of any family, or "sample"."""
    return ModelFolder(path, formats())


def open_model(folder: ModelFolder, variant: str | None = None) -> Model:
    """Open a folder with its family, and warn of LoRAs beside its parts."""
    family = next(family for family in families() if folder.pipeline_class in family.format.pipelines)
    model = family.open(folder, variant)
    loras = [*loras_in(folder.path), *loras_among(folder.path, folder.components)]
    if loras:
        warn(lora_notice(folder.path, loras), stacklevel=4)
    return model


def open_component(path: str | os.PathLike[str], name: str) -> tuple[Part, Component]:
    """A component folder on its own, and the part that it is. name: its name in a pipeline."""
    component = open_component_folder(path, name, formats())
    parts = [family.parts[name] for family in families() if name in family.parts]
    return next(part for part in parts if component.class_name in part.slot.classes), component
