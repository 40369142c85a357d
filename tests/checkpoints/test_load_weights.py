"""load_weights: a component is accepted when its files hold exactly what its config calls for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints import Component, ComponentFiles, Shapes, load_weights
from kinema.errors import CheckpointError

EXPECTED: Shapes = {f"blocks.{i}.weight": (i + 1, 3) for i in range(40)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({name: torch.randn(shape) for name, shape in EXPECTED.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_weights_of_a_component(folder: Path) -> None:
    component = Component("vae", "AutoencoderKLWan", folder, {})
    weights = load_weights(component, EXPECTED)
    files = ComponentFiles(folder)
    block = weights.sub("blocks.7")
    assert torch.equal(block["weight"], files["blocks.7.weight"])
    block["weight"].zero_()
    assert block["weight"].count_nonzero() == 24, "each look-up is a copy of its own"
    assert torch.equal(block.table("weight").rows(torch.tensor([6, 1])), files["blocks.7.weight"][[6, 1]])
    assert block.get("bias") is None


def test_every_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    expected = {f"blocks.{i}.weight": (i + 1, 3) for i in range(30)}  # 10 surplus
    expected.update({f"extra.{i}": (2,) for i in range(25)})  # 25 missing
    expected.update({f"blocks.{i}.weight": (i + 1, 4) for i in range(5)})  # 5 mis-shaped
    with pytest.raises(CheckpointError) as caught:
        load_weights(ComponentFiles(folder), expected)
    message = str(caught.value)
    assert "(40 tensors)" in message
    assert str(folder) in message
    for i in range(30, 40):
        assert f"surplus blocks.{i}.weight ({i + 1}, 3)" in message
    for i in range(25):
        assert f"missing extra.{i} (2,)" in message
    for i in range(5):
        assert f"mis-shaped blocks.{i}.weight: got ({i + 1}, 3), wanted ({i + 1}, 4)" in message
    assert "blocks.6.weight" not in message


def test_optional_tensors(folder: Path) -> None:
    files = ComponentFiles(folder)
    expected = {k: v for k, v in EXPECTED.items() if k != "blocks.0.weight"}
    load_weights(files, expected, optional={"blocks.0.weight": (1, 3), "absent": (9,)})
    with pytest.raises(CheckpointError, match=r"mis-shaped blocks\.0\.weight: got \(1, 3\), wanted \(1, 5\)"):
        load_weights(files, expected, optional={"blocks.0.weight": (1, 5)})


def test_ignored_names_are_searched_as_diffusers_does(folder: Path) -> None:
    expected = {k: v for k, v in EXPECTED.items() if not k.startswith("blocks.3")}
    load_weights(ComponentFiles(folder), expected, ignored=[r"blocks\.3"])
    with pytest.raises(CheckpointError, match=r"surplus blocks\.39\.weight"):
        load_weights(ComponentFiles(folder), expected, ignored=[r"norm_added_q", r"blocks\.3[0-8]", r"blocks\.3\."])


def test_ignoring_never_hides_a_tensor_that_is_wanted(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mis-shaped blocks\.2\.weight"):
        load_weights(ComponentFiles(folder), {**EXPECTED, "blocks.2.weight": (3, 4)}, ignored=["blocks"])


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a is torch\.int8; quantised checkpoints cannot be loaded"):
        load_weights(ComponentFiles(tmp_path), {"a": (3,), "b": (3,)})
    save_file({"a": torch.ones(3).to(torch.float8_e4m3fn), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    load_weights(ComponentFiles(tmp_path), {"a": (3,), "b": (3,)})
