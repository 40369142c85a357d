"""What is done to a picture before CLIP sees it: resize, crop, rescale, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch

from kinema.checkpoints.json_object import read_object
from kinema.errors import CheckpointError, RequestError, shown
from kinema.fields.config import JsonObject, Range, from_config, origin
from kinema.media.libraries import needed

if TYPE_CHECKING:
    from PIL import Image

# Names of the class and the like, and what `from_dict` reads itself.
IGNORED_KEYS = frozenset(
    {
        "crop_size",
        "data_format",
        "default_to_square",
        "feature_extractor_type",
        "image_processor_type",
        "processor_class",
        "size",
    }
)


Pixels = Annotated[int, Range(1, 4096)]
# Of an image that is resized before it is cropped: with extreme proportions it would grow to gigabytes.
MAX_RESIZED_PIXELS = 2**24


@dataclass(frozen=True)
class ClipPreprocessor:
    """preprocessor_config.json of a CLIPImageProcessor.

    shortest_edge: length to which the shorter side is brought, the other in proportion; or `resize_to`
    (height, width), which ignores proportions. crop: (height, width) cut from the middle.
    resample: a pillow filter number, 3 is bicubic.
    """

    shortest_edge: Pixels | None = 224
    resize_to: Annotated[tuple[int, int], Range(1, 4096)] | None = None
    crop: Annotated[tuple[int, int], Range(1, 4096)] = (224, 224)
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    do_convert_rgb: bool = True
    resample: Literal[0, 1, 2, 3, 4, 5] = 3
    rescale_factor: Annotated[float, Range(0, 1000, open=True)] = 1 / 255
    image_mean: Annotated[tuple[float, float, float], Range(-1000, 1000)] = (0.48145466, 0.4578275, 0.40821073)
    image_std: Annotated[tuple[float, float, float], Range(1e-6, 1000)] = (0.26862954, 0.26130258, 0.27577711)

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> ClipPreprocessor:
        """Read a transformers config; CheckpointError for options this processor does not know."""
        where = origin(config, "preprocessor_config.json")
        size = config.get("size", 224)
        if isinstance(size, int):  # configs of 2022 and before
            size = {"shortest_edge": size}
        crop = config.get("crop_size", 224)
        if isinstance(crop, int):
            crop = {"height": crop, "width": crop}
        if not isinstance(size, dict) or set(size) not in ({"shortest_edge"}, {"height", "width"}):
            raise CheckpointError(f"{where}: size is {shown(size)}, wanted shortest_edge, or height and width")
        if not isinstance(crop, dict) or set(crop) != {"height", "width"}:
            raise CheckpointError(f"{where}: crop_size is {shown(crop)}, wanted height and width")
        if config.get("data_format", "channels_first") != "channels_first":
            raise CheckpointError(f"{where}: data_format is {shown(config['data_format'])}, wanted channels_first")
        read_here = {
            "shortest_edge": size.get("shortest_edge"),
            "resize_to": (size["height"], size["width"]) if "height" in size else None,
            "crop": (crop["height"], crop["width"]),
        }
        given = {key: value for key, value in config.items() if key not in IGNORED_KEYS and value is not None}
        return from_config(ClipPreprocessor, JsonObject({**given, **read_here}, where))

    def __post_init__(self) -> None:
        if (self.shortest_edge is None) == (self.resize_to is None):
            raise CheckpointError("an image processor resizes to a shortest_edge, or to a height and a width")

    @staticmethod
    def from_folder(folder: str | Path) -> ClipPreprocessor:
        """Read folder/preprocessor_config.json."""
        return ClipPreprocessor.from_dict(read_object(Path(folder) / "preprocessor_config.json"))

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """One picture or several → pixel_values [B, 3, H, W] fp32."""
        batch = list(images) if isinstance(images, Sequence) else [images]
        pixels = [self._pixels(image) for image in batch]
        if len({p.shape for p in pixels}) != 1:
            raise RequestError(
                f"{len(pixels)} images come out as {sorted({p.shape for p in pixels})}: without a crop to one size "
                "(do_center_crop) they must be equally large"
            )
        return torch.from_numpy(np.stack(pixels))

    def _pixels(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[3, H, W] fp32. The order of roundings is that of transformers, so that results are equal."""
        if self.do_convert_rgb:
            image = _on_white(image)
        elif image.mode != "RGB":
            raise RequestError(f"the image is of mode {image.mode}, this image processor takes RGB only; convert it")
        if self.do_resize:
            height, width = self._target(image.height, image.width)
            if height * width > MAX_RESIZED_PIXELS:
                raise RequestError(f"the image is {image.width}x{image.height}, too long a strip: crop it first")
            image = image.resize((width, height), resample=self.resample)
        pixels = np.asarray(image).transpose(2, 0, 1)
        if self.do_center_crop:
            pixels = _center(pixels, self.crop)
        if self.do_rescale:
            values = (pixels.astype(np.float64) * self.rescale_factor).astype(np.float32)
        else:
            values = pixels.astype(np.float32)
        if self.do_normalize:
            mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.image_mean, self.image_std))
            values = (values - mean) / std
        return np.ascontiguousarray(values)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.resize_to is not None:
            return self.resize_to
        assert self.shortest_edge is not None
        long = int(self.shortest_edge * max(height, width) / min(height, width))
        return (long, self.shortest_edge) if width <= height else (self.shortest_edge, long)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    with needed("PIL", "an image processor"):
        from PIL import Image
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _center(pixels: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Cut `size` (height, width) from the middle of [C, H, W]; what is too small is padded with black."""
    missing = [max(want - have, 0) for want, have in zip(size, pixels.shape[1:], strict=True)]
    # if it is odd, the larger half goes before the image
    pixels = np.pad(pixels, [(0, 0), *((n - n // 2, n // 2) for n in missing)])
    top, left = ((have - want) // 2 for want, have in zip(size, pixels.shape[1:], strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]
