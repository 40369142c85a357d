"""Weights of a finished model as the beginning of a new run: `kinema train-sample --start MODEL` or `--vae MODEL`."""

from __future__ import annotations

from kinema.checkpoints import ModelFolder, load_weights
from kinema.checkpoints.weights import Shapes
from kinema.models import wan
from kinema.sample.recipe import Recipe
from kinema.sample.train_vae import training_shapes
from kinema.sample.training import Tensors
from kinema.text import umt5
from kinema.vae import wan as wan_vae


def read_vae(path: str, recipe: Recipe) -> Tensors:
    """The VAE of a model folder, as phase one leaves it, in fp32; CheckpointError if its sizes are not the recipe's."""
    vae = _read(path, "vae", wan_vae.tensor_shapes(recipe.vae))
    # a model that was written has the past taps that training leaves out
    return {
        name: vae[name][:, :, -shape[2] :].contiguous() if len(shape) == 5 else vae[name]
        for name, shape in training_shapes(recipe.vae).items()
    }


def read_dit(path: str, recipe: Recipe) -> Tensors:
    """The transformer and text encoder, as phase two names them; otherwise as `read_vae`."""
    transformer = _read(path, "transformer", wan.tensor_shapes(recipe.transformer))
    text = _read(path, "text_encoder", umt5.tensor_shapes(recipe.text))
    dit = {f"transformer.{name}": tensor for name, tensor in transformer.items()}
    return dit | {f"text.{name}": tensor for name, tensor in text.items()}


def _read(path: str, component: str, shapes: Shapes) -> Tensors:
    weights = load_weights(ModelFolder(path).component(component), shapes)
    return {key: weights[key].float() for key in shapes}
