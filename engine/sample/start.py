"""Weights of a trained model to start a new run from: `kinema train-sample --start MODEL` or `--vae MODEL`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from kinema.checkpoints import load_weights
from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.weights import Shapes
from kinema.encoders import umt5
from kinema.errors import CheckpointError
from kinema.families.registry import open_folder
from kinema.families.wan import config as wan
from kinema.families.wan.vae import autoencoder as wan_vae
from kinema.sample.recipe import Recipe
from kinema.sample.tokenizer import SPECIAL_TOKENS
from kinema.sample.train_vae import training_shapes
from kinema.sample.training import Tensors, generator_for

PHASE = 4


def read_vae(path: str, recipe: Recipe) -> Tensors:
    """The VAE of a model folder, as phase one leaves it, in fp32; CheckpointError if its sizes are not the recipe's."""
    vae = _read(path, "vae", wan_vae.tensor_shapes(recipe.vae))
    # an exported model has the past taps that training leaves out
    return {
        name: vae[name][:, :, -shape[2] :].contiguous() if len(shape) == 5 else vae[name]
        for name, shape in training_shapes(recipe.vae).items()
    }


def read_words(path: str) -> tuple[str, ...]:
    """The words of a model's tokenizer, in the order of their ids, special tokens apart."""
    file = Path(open_folder(path).component("tokenizer").folder) / "tokenizer.json"
    model = read_object(file).get("model")
    ids = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
        raise CheckpointError(
            f"{file} is not a list of words: --start continues from models that `kinema train-sample` wrote; else "
            "use --vae, which trains the text encoder from scratch"
        )
    return tuple(sorted(ids, key=ids.__getitem__))[len(SPECIAL_TOKENS) :]


def read_dit(path: str, recipe: Recipe) -> Tensors:
    """The transformer and text encoder, as phase two names them; otherwise as `read_vae`.

    A recipe with more words than the model has gets random rows for them, of the same spread as those of known words.
    """
    transformer = _read(path, "transformer", wan.tensor_shapes(recipe.transformer))
    known = min(recipe.text.vocab_size, len(SPECIAL_TOKENS) + len(read_words(path)))
    text = _read(path, "text_encoder", umt5.tensor_shapes(replace(recipe.text, vocab_size=known)))
    table = text[umt5.SHARED_EMBEDDING]
    drawn = torch.randn(
        recipe.text.vocab_size - known,
        table.shape[1],
        generator=generator_for(recipe.seed, PHASE, known),
        dtype=torch.float32,
        device="cpu",
    )
    text[umt5.SHARED_EMBEDDING] = torch.cat((table, table.std() * drawn))
    dit = {f"transformer.{name}": tensor for name, tensor in transformer.items()}
    return dit | {f"text.{name}": tensor for name, tensor in text.items()}


def _read(path: str, component: str, shapes: Shapes) -> Tensors:
    weights = load_weights(open_folder(path).component(component), shapes)
    return {key: weights[key].float() for key in shapes}
