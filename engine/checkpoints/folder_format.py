"""What the pipeline folders of one family may say: decided here, nothing is imported by a name from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema.checkpoints.weights import Shapes


@dataclass(frozen=True)
class Slot:
    """What may stand in one place of a pipeline: the classes that kinema implements.

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
    """pipelines: the classes that model_index.json may name. slots: by name, in the order of use. needed: without one
    of each tuple nothing can be made. options: the dataclass of what model_index.json says besides.

    examples: which folders there are and how to fetch one. original_folder, original_file: what a folder (and the
    names in it) or the tensors of a file are, if they are this family's in another layout. hub_name: the repository in
    this format, of one that may be in another.
    """

    pipelines: tuple[str, ...]
    slots: Mapping[str, Slot]
    needed: tuple[tuple[str, ...], ...]
    options: type[Any]
    examples: str = ""
    original_folder: Callable[[Path, Sequence[str]], str | None] = lambda folder, names: None
    original_file: Callable[[Shapes], str | None] = lambda tensors: None
    hub_name: Callable[[str], str] = lambda name: name
