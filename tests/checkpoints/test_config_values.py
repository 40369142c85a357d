"""Configs from elsewhere: each value is of the kind and in the range that its dataclass declares, or named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from kinema.checkpoints.json_object import parse_object
from kinema.encoders.clip_preprocess import ClipPreprocessor
from kinema.encoders.clip_vision import CLIPVisionConfig
from kinema.encoders.umt5 import UMT5Config
from kinema.errors import CheckpointError
from kinema.families.wan.config import WanConfig
from kinema.families.wan.family import WanOptions, _published_defaults
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.fields.config import JsonObject, Length, Range, from_config
from kinema.request.defaults import GenerationDefaults
from kinema.schedulers.loading import _CORES

DECLARED: list[type[Any]] = [
    *(WanConfig, WanVAEConfig, UMT5Config, CLIPVisionConfig, ClipPreprocessor, WanOptions, GenerationDefaults),
    *(core.config_class for core in _CORES.values()),
]
FIELDS = [(cls, field.name) for cls in DECLARED for field in dataclasses.fields(cls)]
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**6, 10**9, 10**12, 2**63, 10**30, 10**400),
    *(0.0, 1.5, -1.0, 1e-30, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "8", "\x1b[2J", "a" * 100_000, [], [1], [0, 2, 2], [1.5] * 3, ["a"], [None], [[1]], [True] * 3),
    *([1] * 10_000, {}, {"a": 1}, object()),
]


@dataclasses.dataclass(frozen=True)
class Example:
    count: Annotated[int, Range(1, 9)] = 2
    share: Annotated[float, Range(0, 1, open=True)] = 0.5
    any_number: float = 0.0
    flag: bool = False
    name: Literal["a", "b", 3] = "a"
    three: Annotated[tuple[int, int, int], Range(0, 5)] = (1, 2, 3)
    some: Annotated[tuple[float, ...], Range(-1, 1), Length(1, 3)] = (0.0,)
    flags: tuple[bool, ...] = ()
    perhaps: Annotated[int, Range(1, 9)] | None = None
    text: Annotated[str, Length(1, 4)] = "x"
    nothing: None = None

    def __post_init__(self) -> None:
        if self.count == 8:
            raise CheckpointError("8 does not fit")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("count", 9, 9),
        ("count", np.int32(3), 3),
        ("share", 1, 1.0),
        ("share", np.float32(0.25), 0.25),
        ("any_number", -(10**30), -1e30),
        ("flag", True, True),
        ("name", 3, 3),
        ("three", [0, 5, 0], (0, 5, 0)),
        ("three", (0, 5, 0), (0, 5, 0)),
        ("some", [1, -1], (1.0, -1.0)),
        ("some", np.array([0.5]), (0.5,)),
        ("flags", [True, False], (True, False)),
        ("perhaps", 9, 9),
        ("perhaps", None, None),
        ("text", "abcd", "abcd"),
        ("nothing", None, None),
    ],
)
def test_what_fits_is_taken_and_made_plain(key: str, value: Any, wanted: Any) -> None:
    got = getattr(from_config(Example, {key: value}), key)
    assert got == wanted and type(got) is type(wanted)
    if isinstance(got, tuple):
        assert [type(item) for item in got] == [type(item) for item in wanted]


@pytest.mark.parametrize(
    ("key", "values", "wanted"),
    [
        ("count", [0, 10, 1.0, True, "3", None, math.nan, [1], 10**400], "a whole number of 1 to 9"),
        ("share", [0, 1.1, math.nan, math.inf, False, "x", None], "a number above 0, up to 1"),
        ("any_number", [math.nan, math.inf, -math.inf, 10**400, True, None], "a number"),
        ("flag", [1, 0, None, "true", []], "true or false"),
        ("name", ["c", 3.0, True, None, ["a"]], "'a' or 'b' or 3"),
        ("three", [[1, 2], [1, 2, 6], [1, 2, 3, 4], 3, "123", [1, 2, True], {}], "a list of 3 whole numbers of 0 to 5"),
        ("some", [[], [0] * 4, [2], ["a"], 0.5, [math.nan]], "a list of 1 to 3 numbers of -1 to 1"),
        ("flags", [[1], [None], True], "a list of 0 to 1000000 true or false"),
        ("perhaps", [0, "x", False], "a whole number of 1 to 9 or null"),
        ("text", ["", "abcde", 1, None], "a string of 1 to 4 characters"),
        ("nothing", [0, False, {}], "null"),
    ],
)
def test_what_does_not_fit_is_named(key: str, values: list[Any], wanted: str) -> None:
    for value in values:
        with pytest.raises(CheckpointError) as caught:
            from_config(Example, JsonObject({key: value}, "m/config.json"))
        message = str(caught.value)
        assert message.startswith(f"m/config.json: {key} is ") and message.endswith(f", wanted {wanted}")
        assert value == 10**400 or repr(value) in message


def test_every_wrong_key_is_named_at_once_and_unknown_ones_too() -> None:
    with pytest.raises(CheckpointError, match=r"count is 0, wanted .*; flag is 1, wanted true or false$"):
        from_config(Example, {"count": 0, "flag": 1})
    with pytest.raises(CheckpointError, match=r"Example does not know more='x', other=2: this version"):
        from_config(
            Example,
            {"more": "x", "other": 2, "_private": 1, "null": None, "left_out": 1},
            ignore=frozenset({"left_out"}),
        )
    many = {f"key{i}": "v" * 1000 for i in range(5000)}
    with pytest.raises(CheckpointError, match="and 4990 more") as caught:
        from_config(Example, many)
    assert len(str(caught.value)) < 4100
    assert from_config(Example, {"more": "x", "count": 3}, only_known=False) == Example(count=3)
    assert from_config(Example, {"count": None}, null_is_default=True) == Example()
    with pytest.raises(CheckpointError, match=r"^m/c: 8 does not fit$"):
        from_config(Example, JsonObject({"count": 8}, "m/c"))
    for config in ([1], None, "x"):
        with pytest.raises(CheckpointError, match="wanted an object of names and values"):
            from_config(Example, config)  # type: ignore[arg-type]


def test_a_file_is_named_in_what_is_said_of_it() -> None:
    config = parse_object(b'{"eps": -1}', "models/x/config.json")
    with pytest.raises(CheckpointError, match=r"^models/x/config\.json: eps is -1, wanted a number of 0 to 1$"):
        WanConfig.from_dict(config)


@pytest.mark.parametrize(("cls", "key"), FIELDS, ids=[f"{cls.__name__}.{key}" for cls, key in FIELDS])
def test_odd_values_are_refused_or_of_the_declared_kind(cls: type[Any], key: str) -> None:
    """Whatever a file says for any field: a CheckpointError that names it, or a value of its kind."""
    read = 0
    for value in ODD:
        try:
            config = from_config(cls, {key: value})
        except CheckpointError as error:
            assert len(str(error)) < 4100 and str(error).isprintable()
            continue
        read += 1
        got = getattr(config, key)
        flat = got if isinstance(got, tuple) else (got,)
        assert all(type(item) in (bool, int, float, str, type(None)) for item in flat)
        assert all(math.isfinite(item) for item in flat if isinstance(item, float)) or key == "lambda_min_clipped"
    assert read < len(ODD) / 2


@pytest.mark.parametrize("cls", DECLARED, ids=lambda cls: cls.__name__)
def test_every_whole_number_has_limits(cls: type[Any]) -> None:
    """An unlimited count is memory or time that a file decides about."""

    def unlimited(hint: Any, limited: bool = False) -> bool:
        if get_origin(hint) is Annotated:
            inner, *limits = get_args(hint)
            return unlimited(inner, limited or any(isinstance(limit, Range) for limit in limits))
        if hint is int:
            return not limited
        return any(unlimited(arg, limited) for arg in get_args(hint) if get_origin(hint) is not Literal)

    hints = get_type_hints(cls, include_extras=True)
    assert [name for name in hints if unlimited(hints[name])] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_head_dim": 15}, "attention_head_dim is 15, freq_dim 256: wanted even numbers"),
        ({"freq_dim": 33}, "wanted even numbers"),
        ({"in_channels": 4}, "in_channels is 4, out_channels 16"),
        ({"image_dim": 1280}, "image_dim and added_kv_proj_dim come together"),
        ({"image_dim": 1280, "added_kv_proj_dim": 64}, "added_kv_proj_dim is 64: wanted 5120"),
        ({"qk_norm": "rms_norm"}, "qk_norm is 'rms_norm', wanted 'rms_norm_across_heads'"),
        ({"num_layers": 1001}, "num_layers is 1001, wanted a whole number of 1 to 1000"),
        ({"eps": math.nan}, "eps is nan, wanted a number of 0 to 1"),
        ({"patch_size": [1, 2]}, "patch_size is [1, 2], wanted a list of 3 whole numbers of 1 to 64"),
    ],
)
def test_transformers_that_cannot_be_built(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        WanConfig.from_dict({"out_channels": 16, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": True}, "shortest_edge is True"),
        ({"size": {"shortest_edge": None}}, "resizes to a shortest_edge, or to a height and a width"),
        ({"size": {"height": 10**9, "width": 4}}, "resize_to is (1000000000, 4)"),
        ({"crop_size": {"height": "a", "width": 4}}, "crop is ('a', 4)"),
        ({"image_std": [0, 1, 1]}, "image_std is [0, 1, 1]"),
        ({"image_mean": [0.5]}, "image_mean is [0.5], wanted a list of 3"),
        ({"rescale_factor": math.nan}, "rescale_factor is nan"),
        ({"resample": 3.0}, "resample is 3.0"),
    ],
)
def test_image_processors_that_cannot_be_built(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ClipPreprocessor.from_dict(change)
    assert said in str(caught.value)


def test_defaults_of_a_model_are_checked(tmp_path: Path) -> None:
    for declared, said in (
        ({"height": "x"}, "height is 'x'"),
        ({"fps": 0}, "fps is 0"),
        ({"num_frames": True}, "num_frames is True"),
        ({"heigth": 64}, "does not know heigth=64"),
        ([], "wanted an object of height"),
        (3, "is 3: wanted an object"),
    ):
        index = JsonObject({"_kinema_defaults": declared}, "m/model_index.json")
        with pytest.raises(CheckpointError, match=r"_kinema_defaults in m/model_index\.json") as caught:
            _published_defaults(16).declared_by(index)
        assert said in str(caught.value)
    assert _published_defaults(48).declared_by({"_kinema_defaults": {"height": 64}}).width == 1280


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({"a": [[]] * 600_000}),
        json.dumps({"a": [{}] * 600_000}),
        '{"a": 1' + ', "b": 2' * 1_100_000 + "}",
    ],
    ids=["lists", "objects", "many lists", "many objects", "many keys"],
)
def test_json_that_would_take_much_memory_is_not_parsed(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"more than 1000000 values|not valid JSON"):
        parse_object(text.encode(), "x.json")
