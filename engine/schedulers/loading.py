"""Schedulers from diffusers' scheduler_config.json. Classes come from the table here, never from an import."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.opening import is_file
from kinema.errors import CheckpointError, listed, one_line, shown
from kinema.fields.config import from_config as config_from
from kinema.fields.config import origin
from kinema.schedulers.core import SchedulerCore
from kinema.schedulers.ddim import DDIM, CogVideoXDDIM
from kinema.schedulers.diffusers_scheduler import Scheduler
from kinema.schedulers.dpmsolver import DPMSolverMultistep
from kinema.schedulers.flow_match_euler import FlowMatchEulerDiscrete
from kinema.schedulers.unipc import UniPCMultistep

FILE_NAME = "scheduler_config.json"

_CORES: dict[str, type[Any]] = {
    core.class_name: core for core in (FlowMatchEulerDiscrete, UniPCMultistep, DPMSolverMultistep, DDIM, CogVideoXDDIM)
}


_OPTIONS = {field.name for core in _CORES.values() for field in fields(core.config_class)}


def core_from_config(config: Mapping[str, Any]) -> SchedulerCore:
    """The core that a scheduler_config.json describes.

    CheckpointError names the class or the option that kinema cannot honour. Each class of configurations has every
    option that diffusers' class reads; others are ignored, as in diffusers: a configuration keeps the options of the
    class that it came from (`Other.from_config(pipe.scheduler.config)`). Options that no class knows are logged.
    """
    where = origin(config, "scheduler_config.json")
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where} is {shown(config)}: wanted an object of names and values")
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _CORES:
        raise CheckpointError(
            f"{where}: scheduler _class_name={shown(name)} is not supported; wanted one of {sorted(_CORES)}"
        )
    unknown = [str(key) for key in config if key not in _OPTIONS and not str(key).startswith("_")]
    if unknown:
        logging.getLogger(__name__).warning(one_line(f"{where}: {name} has no {listed(unknown)}: ignored"))
    core_class = _CORES[name]
    options = config_from(core_class.config_class, config, only_known=False)
    try:
        core: SchedulerCore = core_class(options)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return core


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """A diffusers-shaped scheduler from the contents of its scheduler_config.json."""
    return Scheduler(core_from_config(config))


def from_pretrained(path: str | PathLike[str]) -> Scheduler:
    """A diffusers-shaped scheduler from a model folder, its `scheduler` subfolder or the json file itself."""
    if not isinstance(path, (str, PathLike)):
        raise CheckpointError(f"the scheduler is given as {shown(path)}: wanted the path of a folder or a json file")
    return from_config(_read(Path(path)))


def _read(path: Path) -> Mapping[str, Any]:
    candidates = [path] if path.suffix == ".json" else [path / "scheduler" / FILE_NAME, path / FILE_NAME]
    file = next((candidate for candidate in candidates if is_file(candidate)), None)
    if file is None:
        raise CheckpointError(f"found no scheduler configuration: looked for {' and '.join(map(str, candidates))}")
    return read_object(file)
