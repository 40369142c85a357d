"""Any other program: a command line that generates a video. Only its time is compared, not its output."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinema.bench.model_parts import Inputs
from kinema.errors import KinemaError, RequestError

FIELDS = ("folder", "prompt", "num_frames", "height", "width", "steps", "seed")


class External:
    """command: words with fields such as {prompt} and {steps} in braces."""

    needs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __init__(self, command: str) -> None:
        self.command = command
        self.settings = f"process of its own, from start to end: {command}"

    def forward(
        self, folder: Path, part: str, inputs: Inputs, dtype: torch.dtype, threads: int
    ) -> Callable[[], Any] | None:
        return None

    def generation(
        self, folder: Path, request: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> Callable[[], Any] | None:
        values = {**request, "folder": folder, "steps": request["num_inference_steps"]}
        try:
            given = {name: values[name] for name in FIELDS}
            words = [word.format_map(given) for word in shlex.split(self.command)]
        except (KeyError, ValueError, IndexError) as error:
            raise RequestError(
                f"--external {self.command!r}: {error} is not a field: wanted some of {', '.join(FIELDS)} in braces"
            ) from error

        def call() -> None:
            try:
                subprocess.run(words, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise KinemaError(f"--external: {error}") from error

        return call
