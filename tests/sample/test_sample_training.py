"""The training of the sample model: it learns, it resumes as if it had never stopped, and what it writes loads."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from kinema import VideoPipeline
from kinema.checkpoints import Weights
from kinema.encoders.umt5 import UMT5Config
from kinema.errors import CheckpointError, RequestError
from kinema.families.wan.config import WanConfig
from kinema.families.wan.vae.autoencoder import WanVAE, WanVAEConfig
from kinema.ops import build_ops, plan_ops, target_for
from kinema.sample.batches import Pools, _noise_levels, batches, tokenize, training_batch
from kinema.sample.evaluate import Quiz, adherence
from kinema.sample.export import export_model
from kinema.sample.plan import dit_seconds, steps_done, vae_seconds
from kinema.sample.pool import ClipPool
from kinema.sample.recipe import DitRecipe, PoolRecipe, Recipe, Schedule, VaeRecipe, changed
from kinema.sample.source import World
from kinema.sample.start import read_dit, read_vae
from kinema.sample.tokenizer import VOCABULARY_SIZE, make_tokenizer
from kinema.sample.train_dit import Models, flow_loss, initial_dit, train_dit
from kinema.sample.train_vae import initial_vae, is_hidden, latent_statistics, train_vae, training_clips, with_past_taps
from kinema.sample.training import Run, generator_for
from kinema.sample.uninterrupted import uninterrupted

OPS = build_ops(plan_ops(target_for("cpu"), "reference"))
WORLD = World(0, 64)
POOL = PoolRecipe(latents=3, start=6, per_step=2)


def tiny_recipe(**changes) -> Recipe:
    vae = WanVAEConfig(
        base_dim=4, z_dim=4, dim_mult=(1, 2, 2, 2), num_res_blocks=1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
    )
    transformer = WanConfig(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
    )
    text = UMT5Config(vocab_size=VOCABULARY_SIZE, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return Recipe(
        num_frames=5,
        vae=vae,
        transformer=transformer,
        text=text,
        train_vae=VaeRecipe(Schedule(8, 5e-3, warmup=2), batch=2, crop=32, frames=(5, 9)),
        train_dit=DitRecipe(
            Schedule(8, 5e-3, warmup=2), batch=3, image_batch=4, clips=POOL, images=replace(POOL, latents=1)
        ),
        **changes,
    )


def quiet(progress, figures) -> None:
    pass


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    recipe = tiny_recipe()
    return WanVAE(recipe.vae, Weights(initial_vae(recipe.vae, 0)), OPS)


def test_the_vae_learns_one_batch(tmp_path):
    recipe = tiny_recipe()
    clips = training_clips(recipe, WORLD, 0)
    run = Run(tmp_path / "never-saved", initial_vae(recipe.vae, 0), Schedule(30, 5e-3, warmup=2), is_hidden)
    losses = []
    for step in range(30):
        vae = WanVAE(recipe.vae, Weights(run.parameters), OPS)
        loss = (vae.decode(vae.encode(clips, chunk=None).mode(), chunk=None, clamp=False) - clips).abs().mean()
        losses.append(float(run.backward(loss)))
        run._update(step)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("phase", ["vae", "dit"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, vae, phase):
    recipe = tiny_recipe()

    def train(folder, stop_after=None):
        if phase == "vae":
            return train_vae(recipe, WORLD, OPS, folder / "vae.safetensors", quiet, stop_after=stop_after)
        return train_dit(recipe, WORLD, OPS, vae, folder, quiet, stop_after=stop_after)

    whole = train(tmp_path / "whole")
    while True:  # stops after every step
        run = train(tmp_path / "pieces", stop_after=0.0)
        if run.done:
            break
    assert run.progress.step == whole.progress.step == 8
    assert run.progress.samples == whole.progress.samples > 0
    for name in whole.parameters:
        assert torch.equal(run.parameters[name], whole.parameters[name]), name
        assert torch.equal(run.average[name], whole.average[name]), name
    changed = [n for n, p in whole.parameters.items() if not torch.equal(p, whole.average[n])]
    assert len(changed) > 0.8 * len(whole.parameters), "nearly everything is trained"


def test_a_run_that_is_stopped_has_saved_its_steps(tmp_path):
    initial = {"weight": torch.randn(3, 4, generator=generator_for(7))}
    run = Run(tmp_path / "run.safetensors", initial, Schedule(9, 5e-3, warmup=2))

    def learn(step):
        if step == 4:
            raise KeyboardInterrupt
        return run.backward(run.parameters["weight"].square().sum()), 1

    with pytest.raises(KeyboardInterrupt):
        run.train(learn, report=quiet)
    again = Run(tmp_path / "run.safetensors", initial, Schedule(9, 5e-3, warmup=2))
    assert again.progress.step == 4 == steps_done(tmp_path / "run.safetensors")
    assert torch.equal(again.parameters["weight"], run.parameters["weight"])


def test_ctrl_c_waits_until_a_step_is_whole():
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # where Python would raise it
        done.append("the rest of the step")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_plan_is_of_the_order_of_what_was_measured():
    """docs/sample_model.md: 53 minutes and about seven hours on two cores."""
    assert 45 * 60 < vae_seconds(Recipe()) < 60 * 60
    assert 6 * 3600 < dit_seconds(Recipe()) < 8 * 3600
    assert dit_seconds(replace(Recipe(), size=128)) == pytest.approx(4 * dit_seconds(Recipe()))


def test_runs_of_other_seeds_differ(tmp_path):
    first, second = (
        train_vae(replace(tiny_recipe(), seed=seed), World(seed, 64), OPS, tmp_path / f"{seed}.safetensors", quiet)
        for seed in (0, 1)
    )
    assert not torch.equal(first.average["decoder.conv_in.weight"], second.average["decoder.conv_in.weight"])


def test_without_past_taps_is_the_published_model(vae):
    recipe = tiny_recipe()
    tensors = initial_vae(recipe.vae, 0)
    published = WanVAE(recipe.vae, Weights(with_past_taps(recipe.vae, tensors)), OPS)
    video = training_clips(recipe, WORLD, 1)
    with torch.no_grad():
        ours, theirs = vae.encode(video), published.encode(video)
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-5)
        latents = torch.randn(1, 4, 4, 3, 3, generator=generator_for(1))
        assert torch.allclose(vae.decode(latents), published.decode(latents), atol=1e-5)


class TestPool:
    def test_content_depends_on_the_step_alone(self, tmp_path, vae):
        recipe = tiny_recipe()
        walked, jumped = (ClipPool(recipe, POOL, 8, WORLD, vae, tmp_path / name) for name in "ab")
        for step in range(6):
            walked.advance(step)
        jumped.advance(7)
        drawn = [pool.draw(5, 40, generator_for(3)) for pool in (walked, jumped)]
        assert drawn[0][0] == drawn[1][0]
        assert torch.equal(drawn[0][1], drawn[1][1])
        assert max(drawn[0][0]) == 6 + 2 * 5 - 1, "the newest clips are drawn, and none of later steps"

    def test_latents_are_those_of_the_clip(self, tmp_path, vae):
        pool = ClipPool(tiny_recipe(), POOL, 8, WORLD, vae, tmp_path)
        pool.advance(2)
        numbers, latents = pool.draw(2, 2, generator_for(0))
        assert torch.allclose(latents, pool._latents_of(numbers), atol=2e-2)

    def test_what_is_there_is_not_encoded_again(self, tmp_path, vae):
        ClipPool(tiny_recipe(), POOL, 8, WORLD, vae, tmp_path).advance(3)
        pool = ClipPool(tiny_recipe(), POOL, 8, WORLD, vae, tmp_path)
        asked = []
        pool._latents_of = lambda numbers: asked.extend(numbers) or torch.zeros(len(numbers), 4, 3, 8, 8)
        pool.advance(4)
        assert asked == [12, 13]

    def test_another_vae_does_not_reuse_it(self, tmp_path, vae):
        recipe = tiny_recipe()
        ClipPool(recipe, POOL, 8, WORLD, vae, tmp_path).advance(0)
        other = WanVAE(recipe.vae, Weights(initial_vae(recipe.vae, 9)), OPS)
        assert not ClipPool(recipe, POOL, 8, WORLD, other, tmp_path)._there.any()


class TestBatches:
    @pytest.fixture
    def pools(self, tmp_path, vae):
        return Pools.open(tiny_recipe(), WORLD, vae, tmp_path)

    def test_the_three_kinds_occur(self, pools):
        recipe = tiny_recipe()
        kinds = set()
        for step in range(1, 8):
            pools.advance(recipe, step)
            batch = training_batch(recipe, pools, step)
            kinds.add((batch.latents.shape[2], batch.causal))
            assert batch.latents.shape[0] == len(batch.ids) == batch.sigmas.shape[0]
            if len(kinds) == 3:
                break
        assert kinds == {(1, False), (2, False), (2, True)}

    def test_workers_make_the_same_batches(self, tmp_path, vae):
        recipe = tiny_recipe()
        alone, together = (
            list(batches(recipe, Pools.open(recipe, WORLD, vae, tmp_path / name), 2, workers))
            for name, workers in (("a", 0), ("b", 2))
        )
        assert len(alone) == len(together) == 6
        for one, other in zip(alone, together, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))

    def test_the_prompt_is_what_the_pipeline_makes_of_it(self, vae):
        """Padding counts as one token here, and as hundreds there."""
        recipe = tiny_recipe()
        models = Models(recipe, {n: t + 0.1 for n, t in initial_dit(recipe).items()}, OPS)
        tokens = tokenize(make_tokenizer(), ["a red circle moving left", ""])
        mask = (torch.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]).long()
        hidden = models.text(tokens.ids, mask) * mask.unsqueeze(-1)
        padded = torch.nn.functional.pad(hidden, (0, 0, 0, 512 - hidden.shape[1]))
        wanted, got = models.transformer.encode_context(padded), models.context(tokens.ids, tokens.lengths)
        assert got.folded == wanted.folded > 0
        for one, other in zip(got.text, wanted.text, strict=True):
            torch.testing.assert_close(one.k, other.k)
            torch.testing.assert_close(one.v, other.v)

    def test_clean_context_does_not_count_and_something_always_does(self):
        sigmas, counts = _noise_levels(tiny_recipe(), 200, 5, True, generator_for(0))
        assert (sigmas[counts == 0] <= 0.05).all()
        assert (counts.sum(dim=1) >= 1).all() and (counts == 0).any()
        assert (sigmas[counts == 1] > 0.05).float().mean() > 0.95

    def test_the_loss_reaches_every_tensor(self, pools):
        recipe = tiny_recipe()
        generator = generator_for(5)
        # zeros at the start of residual branches would hide what lies behind them
        tensors = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in initial_dit(recipe).items()}
        parameters = {n: torch.nn.Parameter(t) for n, t in tensors.items()}
        for step in (1, 3, 5, 6, 7):
            pools.advance(recipe, step)
            flow_loss(Models(recipe, parameters, OPS), training_batch(recipe, pools, step)).backward()
        silent = [n for n, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == []


def test_what_is_written_loads_in_kinema_and_diffusers(tmp_path, vae):
    from diffusers import WanPipeline

    recipe = tiny_recipe()
    mean, std = latent_statistics(recipe, WORLD, vae, clips=16)
    assert min(std) > 0
    config = replace(recipe.vae, latents_mean=mean, latents_std=std)
    run = train_dit(recipe, WORLD, OPS, vae, tmp_path / "run", quiet)
    export_model(
        tmp_path / "model",
        recipe,
        config,
        initial_vae(recipe.vae, 0),
        run.average,
        {"note": "test"},
        dtype=torch.float32,
    )
    ours = VideoPipeline.from_pretrained(tmp_path / "model")
    request = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 64, "width": 64, "num_frames": 5}
    out = ours("a red circle moving left", seed=1, **request)
    theirs = WanPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    # the default generator: diffusers draws the steps' noise from it, whatever it is given
    wanted = theirs("a red circle moving left", generator=torch.manual_seed(1), **request).frames
    assert abs(out.frames - wanted).max() <= 1 / 255
    assert ours.defaults.num_frames == recipe.num_frames
    quiz = Quiz.draw(recipe, 4)
    figures = adherence(recipe, run.average, WanVAE(config, Weights(initial_vae(recipe.vae, 0)), OPS), OPS, quiz)
    assert set(figures) == {"subject", "colour", "motion", "all"} and all(0 <= v <= 1 for v in figures.values())

    model = str(tmp_path / "model")
    start = read_dit(model, recipe)
    for got, written in ((read_vae(model, recipe), initial_vae(recipe.vae, 0)), (start, run.average)):
        assert got.keys() == written.keys() and all(torch.equal(got[name], written[name]) for name in got)
    more = train_dit(replace(recipe, seed=1), WORLD, OPS, vae, tmp_path / "more", quiet, initial=start)
    assert more.progress.curve[0]["loss"] < run.progress.curve[0]["loss"]
    with pytest.raises(CheckpointError, match="mis-shaped"):
        read_dit(model, replace(recipe, transformer=replace(recipe.transformer, ffn_dim=48)))


def test_any_number_of_the_recipe_can_be_set():
    recipe = changed(changed(Recipe(), "train_dit.schedule.decay=0.5"), "train_dit.batch=48")
    assert (recipe.train_dit.schedule.decay, recipe.train_dit.batch) == (0.5, 48)
    assert recipe.train_vae == Recipe().train_vae


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train_dit.noise=2", "wanted NAME=NUMBER or NAME.NAME=NUMBER with one of schedule, batch"),
        ("train_dit=2", "wanted NAME=NUMBER"),
        ("seed", "wanted NAME=NUMBER"),
        ("seed.x=2", "wanted NAME=NUMBER"),
        ("train_dit.batch=1.5", "wanted a number like 64"),
    ],
)
def test_a_number_that_the_recipe_lacks_is_refused(change, message):
    with pytest.raises(RequestError, match=message):
        changed(Recipe(), change)
