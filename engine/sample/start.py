"""Weights of a finished model as the beginning of a new run: `kinema train-sample --start MODEL`."""

from __future__ import annotations

from dataclasses import dataclass

from kinema.checkpoints import ModelFolder, load_weights
from kinema.checkpoints.weights import Shapes
from kinema.models import wan
from kinema.sample.recipe import Recipe
from kinema.sample.train_vae import training_shapes
from kinema.sample.training import Tensors
from kinema.text import umt5
from kinema.vae import wan as wan_vae


@dataclass(frozen=True)
class Start:
    """vae: as phase one leaves it, and final. dit: what phase two begins with."""

    vae: Tensors
    dit: Tensors


def read_start(path: str, recipe: Recipe) -> Start:
    """The weights of a model folder of the recipe's sizes, in fp32; CheckpointError if they are others."""
    folder = ModelFolder(path)

    def read(name: str, shapes: Shapes) -> Tensors:
        weights = load_weights(folder.component(name), shapes)
        return {key: weights[key].float() for key in shapes}

    vae = read("vae", wan_vae.tensor_shapes(recipe.vae))
    # a model that was written has the past taps that training leaves out
    vae = {
        name: vae[name][:, :, -shape[2] :].contiguous() if len(shape) == 5 else vae[name]
        for name, shape in training_shapes(recipe.vae).items()
    }
    transformer = read("transformer", wan.tensor_shapes(recipe.transformer))
    text = read("text_encoder", umt5.tensor_shapes(recipe.text))
    dit = {f"transformer.{name}": tensor for name, tensor in transformer.items()}
    return Start(vae, dit | {f"text.{name}": tensor for name, tensor in text.items()})
