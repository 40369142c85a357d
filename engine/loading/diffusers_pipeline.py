"""What kinema's pipelines have of diffusers', besides the call: parts, device, progress bar, scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kinema.errors import RequestError, shown
from kinema.fields.diffusers_names import INSTEAD, DiffusersNames, lacks
from kinema.fields.values import flag, of_kind

if TYPE_CHECKING:
    from kinema.loading.components import Components
    from kinema.ops import Ops

Self = TypeVar("Self", bound="DiffusersPipeline")


class _Part:
    """A part of the model, loaded when it is read; assigning one of the same configuration replaces it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, pipe: DiffusersPipeline | None, owner: type) -> Any:
        return self if pipe is None else pipe.components.get(self._name)

    def __set__(self, pipe: DiffusersPipeline, part: Any) -> None:
        pipe.components.replace(self._name, part)


class DiffusersPipeline(DiffusersNames):
    """Names of diffusers' DiffusionPipeline. For those that are not here, `diffusers_names` says what to use."""

    components: Components
    ops: Ops
    bar: dict[str, Any]

    transformer, transformer_2, vae = _Part(), _Part(), _Part()
    text_encoder, tokenizer = _Part(), _Part()
    image_encoder, image_processor = _Part(), _Part()
    scheduler = _Part()

    def __setattr__(self, name: str, value: Any) -> None:
        declared = any(name in vars(cls).get("__annotations__", {}) for cls in type(self).__mro__)
        if not declared and not hasattr(type(self), name):  # a mistyped name would have no effect
            raise lacks(type(self), name)
        object.__setattr__(self, name, value)

    @property
    def device(self) -> torch.device:
        return self.ops.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations between the transformer's layers."""
        return self.ops.dtype

    def to(
        self: Self, *where: Any, device: Any = None, dtype: Any = None, silence_dtype_warnings: bool = False
    ) -> Self:
        """The pipeline itself. RequestError for a device or dtype that it was not loaded for."""
        if dtype is not None:
            where = (*where, of_kind("dtype", dtype, torch.dtype))
        for asked in (*where, device):
            if isinstance(asked, torch.dtype):
                if asked not in (self.dtype, self.ops.plan.target.precision.weights):
                    raise RequestError(f"this pipeline is in {self.dtype}, not {asked}: {INSTEAD['half']}")
            elif asked is not None and not self._is_here(asked):
                raise RequestError(f"this pipeline is on {self.device}, not on {shown(asked)}: {INSTEAD['cuda']}")
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """disable: whether calls show no bar, None to show one on a terminal; desc, leave: as tqdm takes them."""
        unknown = [name for name in options if name not in ("disable", "desc", "leave")]
        if unknown:
            raise RequestError(f"set_progress_bar_config takes disable, desc and leave: leave out {', '.join(unknown)}")
        if options.get("disable") is not None:
            flag("disable", options["disable"])
        show = None if options.get("disable") is None else not options["disable"]
        self.bar = {"show": show, "title": options.get("desc"), "leave": options.get("leave", True)}

    def _is_here(self, device: Any) -> bool:
        try:
            asked = torch.device(device)
        except (RuntimeError, TypeError):
            wanted = f"wanted a device or a torch.dtype; {INSTEAD['cuda']}"
            raise RequestError(f"a pipeline cannot be moved to {shown(device)}: {wanted}") from None
        here = self.device
        index = 0 if here.index is None else here.index
        return asked.type == here.type and (here.type == "cpu" or asked.index in (None, index))
