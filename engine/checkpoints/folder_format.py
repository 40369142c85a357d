"""What the pipeline folders of one family may contain. Nothing is imported by a name that a file gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema.checkpoints.weights import Shapes


@dataclass(frozen=True)
class Slot:
    """One component of a pipeline: the classes of it that kinema implements.

    supersets: classes whose folders hold such a component and more; config.json may name them. optional_config: the
    folder may lack its config file.
    """

    library: str
    classes: tuple[str, ...]
    config_file: str = "config.json"
    supersets: tuple[str, ...] = ()
    optional_config: bool = False


@dataclass(frozen=True)
class FolderFormat:
    """pipelines: the classes that model_index.json may name. slots: by name, in the order of use. needed: a folder must
    have one of each tuple. options: the dataclass of the other entries of model_index.json.

    examples: which folders exist and how to fetch one. original_folder, original_file: describe a folder (and the names
    in it), or the tensors of a file, if they are this family's in another layout. hub_name: the repository in this
    format, given one that may be in another.
    """

    pipelines: tuple[str, ...]
    slots: Mapping[str, Slot]
    needed: tuple[tuple[str, ...], ...]
    options: type[Any]
    examples: str = ""
    original_folder: Callable[[Path, Sequence[str]], str | None] = lambda folder, names: None
    original_file: Callable[[Shapes], str | None] = lambda tensors: None
    hub_name: Callable[[str], str] = lambda name: name
