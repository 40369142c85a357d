"""Keyword arguments of `from_pretrained` and of a pipeline's call, diffusers' names among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from kinema.errors import RequestError, shown
from kinema.families.registry import slot_names
from kinema.fields.diffusers_names import CALL_INSTEAD, LOAD_INSTEAD, unknown
from kinema.fields.values import flag
from kinema.loading.options import LoadOptions
from kinema.request.generation import GenerationRequest

# diffusers' options that ask for what kinema does anyway, with the values that do
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_safetensors": (True, None),
    "local_files_only": (True, False, None),
    "low_cpu_mem_usage": (True, False, None),
}
_HARMLESS_IN_CALL = ("attention_kwargs",)


def loading(given: Mapping[str, Any]) -> tuple[LoadOptions, dict[str, Any]]:
    """The options, and by name the parts that are given instead of loaded."""
    options = dict(given)
    parts = {name: options.pop(name) for name in slot_names() if name in options}
    for name, fine in _HARMLESS.items():
        value = options.pop(name, fine[0])
        if not any(value is one for one in fine):
            raise RequestError(f"{name} is {shown(value)}: kinema reads safetensors from a local folder; leave it out")
    for name in ("torch_dtype", "dtype"):
        precision = _precision(name, options.pop(name, None))
        if precision is not None and options.setdefault("precision", precision) != precision:
            raise RequestError(f"{name} and precision={shown(options['precision'])} disagree: give precision alone")
    _refuse_unknown(options, LoadOptions, LOAD_INSTEAD)
    return LoadOptions(**options), parts


def request(given: Mapping[str, Any]) -> GenerationRequest:
    """What a call asks for."""
    asked = {name: value for name, value in given.items() if name not in _HARMLESS_IN_CALL or value}
    _refuse_unknown(asked, GenerationRequest, CALL_INSTEAD)
    return GenerationRequest(**asked)


def calling(progress: Any, return_dict: Any) -> None:
    """Check the arguments of a call that are not part of the request."""
    if progress is not None:
        flag("progress", progress)
    flag("return_dict", return_dict)


def _precision(name: str, dtype: Any) -> str | None:
    """The precision that stores weights in a torch dtype."""
    import torch

    known = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return None
    if not isinstance(dtype, torch.dtype) or dtype not in known:
        raise RequestError(
            f"{name} is {shown(dtype)}: wanted torch.float32, torch.bfloat16 or torch.float16; or give precision= "
            "(fp32, bf16, fp16, fp8 or int8) instead"
        )
    return known[dtype]


def _refuse_unknown(given: Mapping[str, Any], cls: type[Any], instead: Mapping[str, str]) -> None:
    known = [field.name for field in fields(cls)]
    strange = [name for name in given if name not in known]
    if strange:
        raise unknown(strange, known, instead)
