"""kinema train-sample: train the small model, resumably, and write it as a folder."""

from __future__ import annotations

import argparse
import math
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kinema.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", default="runs/sample", help="where the run keeps its state; run again to resume (%(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the model folder to write (model in --runs)")
    parser.add_argument(
        "--data", metavar="FOLDER", help="your own clips with captions: name.mp4 (or .npy) and name.txt"
    )
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="a trained model of the same sizes to continue from: its VAE and words are kept, new words added",
    )
    parser.add_argument(
        "--vae", metavar="MODEL", help="a trained model whose VAE is used; the rest is trained from scratch"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(cuda where torch sees a GPU)")
    parser.add_argument("--size", type=int, help="side of the square frames (64)")
    parser.add_argument("--num-frames", type=int, help="frames of a clip, 4k + 1 (17)")
    parser.add_argument("--fps", type=float, help="frames per second that the model declares (12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    parser.add_argument("--vae-steps", type=int, help="steps of the first phase")
    parser.add_argument("--steps", type=int, help="steps of the second phase")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="any other number of recipe.py, such as train_dit.noise_mean=2; may be given several times",
    )
    parser.add_argument("--minutes", type=float, help="stop each phase after this long; run again to resume")
    parser.add_argument("--threads", type=int, help="CPU threads")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from kinema.checkpoints import Weights
    from kinema.families.wan.vae.autoencoder import WanVAE
    from kinema.ops import build_ops, plan_ops, target_for
    from kinema.sample.evaluate import Quiz, adherence
    from kinema.sample.export import check_output, export_model
    from kinema.sample.plan import plan
    from kinema.sample.start import read_dit, read_vae
    from kinema.sample.train_dit import train_dit
    from kinema.sample.train_vae import latent_statistics, train_vae
    from kinema.sample.training import Progress, Tensors

    if arguments.start is not None and arguments.vae is not None:
        raise RequestError("--start keeps the VAE of its model: give --start or --vae, not both")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    folder = Path(arguments.runs)
    output = folder / "model" if arguments.output is None else Path(arguments.output)
    check_output(output, folder)
    recipe, source = _recipe_and_source(arguments, device)
    ops = build_ops(plan_ops(target_for(device), "reference"))
    stop_after = None if arguments.minutes is None else 60 * arguments.minutes

    kept = arguments.start or arguments.vae
    print(plan(recipe, folder, device, trains_vae=kept is None), flush=True)
    folder.mkdir(parents=True, exist_ok=True)  # now, and not after minutes, if it cannot be made
    if kept is not None:
        trained, vae_progress = read_vae(kept, recipe), Progress()
    else:
        vae_run = train_vae(
            recipe,
            source,
            ops,
            folder / "vae.safetensors",
            _reporter("vae", recipe.train_vae.schedule.steps),
            stop_after=stop_after,
        )
        if not vae_run.done:
            print(f"the VAE has done {vae_run.progress.step} steps; run the same command to resume")
            return 0
        trained, vae_progress = vae_run.average, vae_run.progress
    vae = WanVAE(recipe.vae, Weights(trained), ops)
    mean, std = latent_statistics(recipe, source, vae)
    vae_config = replace(recipe.vae, latents_mean=mean, latents_std=std)
    vae = WanVAE(vae_config, Weights(trained), ops)

    def judged(tensors: Tensors, frames: int) -> dict[str, float]:
        asked = replace(recipe, num_frames=frames)
        return adherence(asked, tensors, vae, ops, Quiz.draw(asked, 64))

    dit_run = train_dit(
        recipe,
        source,
        ops,
        vae,
        folder,
        _reporter("dit", recipe.train_dit.schedule.steps),
        judged if arguments.data is None else None,  # nothing judges clips of another world
        initial=None if arguments.start is None else read_dit(arguments.start, recipe),
        stop_after=stop_after,
    )
    record = {
        "commit": _commit(),
        "recipe": asdict(recipe),
        "start": arguments.start,
        "vae_of": arguments.vae,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "vae": asdict(vae_progress),
        "dit": asdict(dit_run.progress),
        "torch": torch.__version__,
    }
    export_model(output, recipe, vae_config, trained, dit_run.average, record, words=source.words)
    print(f"{output}: written after {dit_run.progress.step} steps" + ("" if dit_run.done else ", not done"))
    return 0


def _recipe_and_source(arguments: argparse.Namespace, device: str) -> Any:
    from kinema.sample.clip_folder import ClipFolder
    from kinema.sample.recipe import Recipe, changed
    from kinema.sample.source import World
    from kinema.sample.start import read_words

    for option in ("steps", "vae_steps", "threads"):
        count = getattr(arguments, option)
        if count is not None and count < 1:
            raise RequestError(f"--{option.replace('_', '-')} is {count}: wanted at least 1")
    if arguments.minutes is not None and not 0 <= arguments.minutes < math.inf:
        raise RequestError(f"--minutes is {arguments.minutes}: wanted 0 or more")
    asked = {name: getattr(arguments, name) for name in ("size", "num_frames", "fps")}
    recipe = replace(Recipe(seed=arguments.seed), **{k: v for k, v in asked.items() if v is not None})
    if arguments.vae_steps is not None:
        schedule = replace(recipe.train_vae.schedule, steps=arguments.vae_steps)
        recipe = replace(recipe, train_vae=replace(recipe.train_vae, schedule=schedule))
    if arguments.steps is not None:
        schedule = replace(recipe.train_dit.schedule, steps=arguments.steps)
        recipe = replace(recipe, train_dit=replace(recipe.train_dit, schedule=schedule))
    for change in arguments.set:
        recipe = changed(recipe, change)
    _check_sizes(recipe)
    known = () if arguments.start is None else read_words(arguments.start)
    if arguments.data is None:
        world = World(recipe.seed, recipe.size, device, known)
        return _with_words(recipe, len(world.words)), world
    source = ClipFolder(arguments.data, recipe.size, recipe.num_frames, recipe.seed, known)
    longest = 1 + (min(source.lengths) - 1) // recipe.vae.scale_factor_temporal
    clips = replace(recipe.train_dit.clips, latents=min(recipe.train_dit.clips.latents, longest))
    return _with_words(replace(recipe, train_dit=replace(recipe.train_dit, clips=clips)), len(source.words)), source


def _with_words(recipe: Any, words: int) -> Any:
    from kinema.sample.tokenizer import SPECIAL_TOKENS

    return replace(recipe, text=replace(recipe.text, vocab_size=len(SPECIAL_TOKENS) + words))


def _check_sizes(recipe: Any) -> None:
    step = recipe.vae.scale_factor_spatial * recipe.transformer.patch_size[1]
    if recipe.size < recipe.train_vae.crop or recipe.size % step:
        raise RequestError(f"size is {recipe.size}: wanted a multiple of {step}, {recipe.train_vae.crop} or more")
    if recipe.num_frames < 5 or recipe.num_frames % recipe.vae.scale_factor_temporal != 1:
        raise RequestError(f"num_frames is {recipe.num_frames}: wanted 4k + 1, 5 or more")


def _reporter(phase: str, steps: int) -> Any:
    def report(progress: Any, figures: dict[str, float]) -> None:
        rate = progress.step / max(progress.seconds, 1e-9)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        left = (steps - progress.step) / max(rate, 1e-9) / 60
        print(f"{phase} step {progress.step}/{steps}: {shown}; {rate:.2f} steps/s, {left:.0f} min left", flush=True)

    return report


def _commit() -> str:
    """The commit that this checkout is at, "unknown" outside a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
