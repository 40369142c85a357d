"""Schedulers from diffusers' scheduler_config.json. Classes come from the table here, never from an import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from kinema.config import from_config as config_from
from kinema.errors import CheckpointError
from kinema.schedulers.core import SchedulerCore
from kinema.schedulers.ddim import DDIM, CogVideoXDDIM
from kinema.schedulers.dpmsolver import DPMSolverMultistep
from kinema.schedulers.facade import Scheduler
from kinema.schedulers.flow_match_euler import FlowMatchEulerDiscrete
from kinema.schedulers.unipc import UniPCMultistep

FILE_NAME = "scheduler_config.json"

_CORES: dict[str, type[Any]] = {
    core.class_name: core for core in (FlowMatchEulerDiscrete, UniPCMultistep, DPMSolverMultistep, DDIM, CogVideoXDDIM)
}


def core_from_config(config: Mapping[str, Any]) -> SchedulerCore:
    """The core that a scheduler_config.json describes.

    CheckpointError names the class or the option that kinema cannot honour.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _CORES:
        raise CheckpointError(f"scheduler _class_name={name!r} is not supported; wanted one of {sorted(_CORES)}")
    core_class = _CORES[name]
    core: SchedulerCore = core_class(config_from(core_class.config_class, config))
    return core


def from_config(config: Mapping[str, Any]) -> Scheduler:
    """A diffusers-shaped scheduler from the contents of its scheduler_config.json."""
    return Scheduler(core_from_config(config))


def from_pretrained(path: str | PathLike[str]) -> Scheduler:
    """A diffusers-shaped scheduler from a model folder, its `scheduler` subfolder or the json file itself."""
    return from_config(_read(Path(path)))


def _read(path: Path) -> Mapping[str, Any]:
    candidates = [path] if path.suffix == ".json" else [path / "scheduler" / FILE_NAME, path / FILE_NAME]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise CheckpointError(f"found no scheduler configuration: looked for {' and '.join(map(str, candidates))}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds a {type(config).__name__}, wanted a JSON object")
    return config
