"""Pictures of pillow's other modes: 16 bits and floats are scaled, what has no known white is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.errors import RequestError
from kinema.media.inputs import load_image, load_video
from kinema.media.pixels import read_image, read_video

RAMP = np.tile(np.linspace(0, 1, 256), (8, 1))
DEEP = (RAMP * 65535).round().astype(np.uint16)
EIGHT = (RAMP * 255).round().astype(np.uint8)


def encoded(values: np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **options)
    return file.getvalue()


def pgm(maximum: int) -> bytes:
    """A portable graymap of another depth: two bytes a sample, big-endian."""
    return f"P5 256 8 {maximum}\n".encode() + (RAMP * maximum).round().astype(">u2").tobytes()


def twelve_bits() -> bytes:
    """A TIFF of 12 bits a sample, which pillow unpacks to 0..4095."""
    pairs = (RAMP * 4095).round().astype(np.uint32).reshape(-1, 2)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).reshape(-1, 1).view(np.uint8)[:, 2::-1].tobytes()
    tags = {256: 256, 257: 8, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(packed)}
    entries = [tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in tags.items()]
    directory = len(tags).to_bytes(2, "little") + b"".join(entries) + bytes(4)
    return b"II*\0" + (8 + len(packed)).to_bytes(4, "little") + packed + directory


FLOATS = RAMP.astype(np.float32)
FILES = {
    "deep.png": encoded(DEEP, "png"),
    "deep.tiff": encoded(DEEP, "tiff"),
    "deflated.tiff": encoded(DEEP, "tiff", compression="tiff_adobe_deflate"),
    "twelve.tiff": twelve_bits(),
    "sixteen.ppm": pgm(65535),
    "ten.ppm": pgm(1023),
    "float.tiff": encoded(FLOATS, "tiff"),
}
PICTURES = {
    **{name: Image.open(io.BytesIO(data)) for name, data in FILES.items()},
    "deep": Image.fromarray(DEEP),
    "big-endian": Image.frombytes("I;16B", (256, 8), DEEP.astype(">u2").tobytes()),
    "float": Image.fromarray(FLOATS),
}


def check_ramp(seen: np.ndarray) -> None:
    assert seen.shape == (8, 256, 3)
    assert np.abs(seen.astype(int) - EIGHT[..., None]).max() <= 1


@pytest.mark.parametrize("name", PICTURES)
def test_deep_grey_is_scaled(name):
    picture = PICTURES[name]
    check_ramp(np.asarray(load_image(picture)))
    for pixels in (read_image(picture), read_video([picture] * 2, 8, 256)):
        values = pixels.values(8, 256)[-1].permute(1, 2, 0)
        check_ramp((values * 127.5 + 127.5).round().numpy())


@pytest.mark.parametrize("name", FILES)
def test_files_of_deep_grey_are_scaled(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    check_ramp(np.asarray(load_image(tmp_path / name)))
    check_ramp(load_video(tmp_path / name).frames[0])
    check_ramp(load_video(tmp_path).frames[0])


def test_every_value_of_sixteen_bits_is_rounded():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(load_image(Image.fromarray(values)))[..., 1]
    assert np.abs(seen - values / 257).max() <= 0.5


def test_a_wide_picture_is_converted_in_strips(monkeypatch, rng):
    from kinema.media import picture_files

    monkeypatch.setattr(picture_files, "_STRIP_PIXELS", 100)
    values = rng.integers(0, 65536, (37, 41), dtype=np.uint16)
    seen = np.asarray(load_image(Image.fromarray(values)))
    assert np.abs(seen - (values / 257)[..., None]).max() <= 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, 255.0])
def test_floats_beyond_the_unit_range_are_refused(value):
    values = RAMP.astype(np.float32).copy()
    values[3, 7] = value
    for read in (load_image, read_image, lambda picture: read_video([picture], 8, 8)):
        with pytest.raises(RequestError, match=r"must lie in 0\.\.1"):
            read(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["I", "LAB"])
def test_what_has_no_known_white_is_refused(mode):
    picture = Image.fromarray((RAMP * 60000).astype(np.int32)) if mode == "I" else Image.new(mode, (8, 8))
    for read in (load_image, read_image, lambda picture: read_video([picture], 8, 8)):
        with pytest.raises(RequestError, match=f"mode {mode} does not say which value is white"):
            read(picture)
    with pytest.raises(RequestError, match="mode I does not"):
        read_image(Image.open(io.BytesIO(encoded((RAMP * 60000).astype(np.int32), "tiff"))))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_eight_bits_stay_as_they_are(mode, rng):
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    grey = mode in ("1", "L", "LA", "La")
    through = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    picture = small.convert("L") if grey else small
    if through != "RGB":
        picture = picture.convert("RGBA").convert("PA") if mode == "PA" else picture.convert(through)
    if mode != through:
        picture = picture.convert(mode)
    seen = np.asarray(load_image(picture)).astype(int)
    if mode in ("1", "P", "PA"):
        expected = np.asarray(picture.convert("RGB"))
    else:
        expected = np.asarray(small.convert("L").convert("RGB") if grey else small)
    assert np.abs(seen - expected).max() <= (8 if mode in ("YCbCr", "HSV") else 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palettes_keep_the_colours_of_what_is_transparent(transparency, rng):
    picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).quantize(8)
    expected = np.asarray(picture.convert("RGB"))
    picture.info["transparency"] = transparency
    assert np.array_equal(np.asarray(load_image(picture)), expected)
    file = io.BytesIO()
    picture.save(file, "png")
    assert np.array_equal(np.asarray(load_image(Image.open(file))), expected)


def test_float_arrays_and_deep_pictures_mean_the_same():
    unit = torch.from_numpy(RAMP).float().expand(3, -1, -1)
    assert (read_image(unit).values(8, 256) - read_image(Image.fromarray(DEEP)).values(8, 256)).abs().max() < 1 / 255
