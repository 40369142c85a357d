"""A caller's callback between steps: which tensors it is given, and what becomes of its changes to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from kinema.denoise.state import RequestState
from kinema.errors import RequestError, shown
from kinema.fields.values import function, kind

StepCallback = Callable[[RequestState, int, torch.Tensor, dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]

EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds")


def check_callback(callback: Any, names: Any, *, guided: bool) -> list[str]:
    """The names of the tensors that `callback` wants; diffusers' callback objects say it themselves."""
    if callback is not None:
        function("callback_on_step_end", callback)
    own = getattr(callback, "tensor_inputs", None)
    listed = own if isinstance(own, (list, tuple)) else names
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
        raise RequestError(f"callback_on_step_end_tensor_inputs is {shown(listed)}: wanted a list of names")
    offered = ["latents", *(EMBEDDINGS if guided else EMBEDDINGS[:1])]
    unknown = [name for name in listed if name not in offered]
    if unknown:
        raise RequestError(f"callback_on_step_end_tensor_inputs {unknown}: this request has {sorted(offered)}")
    return list(listed)


def call_back(callback: StepCallback, state: RequestState, step: int, timestep: torch.Tensor, names: list[str]) -> None:
    """Call it after a step. What it returns replaces the state's tensors, and what it wrote into them counts too."""
    given = state.tensors(names)
    before = {name: tensor.clone() for name, tensor in given.items() if name in EMBEDDINGS}
    changed = callback(state, step, timestep, dict(given))
    if changed is not None and not isinstance(changed, Mapping):
        raise RequestError(f"a callback returned {kind(changed)}: wanted a dict of tensors, or None")
    state.replace_tensors({} if changed is None else changed)
    if any(not torch.equal(given[name], tensor) for name, tensor in before.items()):
        state.forget_context()
