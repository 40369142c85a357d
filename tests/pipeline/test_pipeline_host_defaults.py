"""A host application's torch.set_default_dtype and torch.set_default_device change no bit of what kinema gives.

With a default of 16 bits, an allocation that followed it would be half as large as what a kernel writes there. So the
sample pipeline runs in a process of its own, as a host would run it.
"""

import subprocess
import sys

import pytest
import torch

import kinema
from kinema import schedulers

DEFAULTS = ("bfloat16", "float16", "float64", "meta")
HOST = """
import numpy, torch, kinema

def clip():
    pipe = kinema.VideoPipeline.from_pretrained("sample", device="cpu")
    small = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    return pipe("a red circle moving left", **small, seed=1, progress=False).frames

wanted = clip()
for dtype in (torch.bfloat16, torch.float16, torch.float64):
    torch.set_default_dtype(dtype)
    assert numpy.array_equal(clip(), wanted), dtype
torch.set_default_dtype(torch.float32)
torch.set_default_device("meta")
assert numpy.array_equal(clip(), wanted), "meta"
print("the same")
"""


@pytest.mark.usual
def test_a_host_gets_the_same_clip():
    done = subprocess.run([sys.executable, "-c", HOST], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr[-2000:]


CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 3, "progress": False}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("kind", ["t2v", "ti2v", "i2v_first_last", "two_experts"])
def test_pipelines_of_every_kind_give_the_same_frames(models, hosts_default, kind, default):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, 3, 32, 32, generator=generator)
    given = {
        "t2v": {"video": pictures, "strength": 0.9},
        "ti2v": {"image": pictures[0]},
        "i2v_first_last": {"image": pictures[0], "last_image": pictures[1]},
        "two_experts": {},
    }[kind]
    wanted = models(kind).ours("a red circle", **given, **CALL).frames
    with hosts_default(default):
        got = models.fresh(kind)("a red circle", **given, **CALL).frames
    assert (got == wanted).all()


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_loaders_give_the_same_numbers(models, hosts_default, backend, default):
    """Each part alone: the text encoder with a mask that is not right-padded, the VAE both ways, the transformer."""
    folder = models("t2v").folder
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, 5, 16, 16, generator=generator)
    latents, text = torch.randn(1, 4, 2, 4, 4, generator=generator), torch.randn(1, 16, 24, generator=generator)
    ids, mask = torch.randint(3, 18, (2, 8), generator=generator), torch.ones(2, 8, dtype=torch.int64)
    mask[0, 3] = mask[1, 6:] = 0
    timestep = torch.tensor([900.0])

    def numbers():
        options = {"device": "cpu", "backend": backend}
        encode = kinema.load_text_encoder(folder / "text_encoder", **options)
        vae = kinema.load_vae(folder / "vae", **options)
        transformer = kinema.load_transformer(folder / "transformer", **options)
        posterior = vae.encode(video)
        return [
            encode(ids, mask),
            posterior.mode(),
            posterior.sample(torch.Generator().manual_seed(1)),
            vae.decode(latents),
            transformer(latents, timestep, text, return_dict=False)[0],
        ]

    with torch.no_grad():
        wanted = numbers()
        with hosts_default(default):
            got = numbers()
    assert all(torch.equal(ours, before) for ours, before in zip(got, wanted, strict=True))


SCHEDULERS = {
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    "DPMSolverMultistepScheduler": {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
    "FlowMatchEulerDiscreteScheduler": {"shift": 5.0},
    "DDIMScheduler": {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2", "set_alpha_to_one": True},
    "CogVideoXDDIMScheduler": {"snr_shift_scale": 3.0, "timestep_spacing": "trailing"},
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_take_the_same_steps(hosts_default, name, default):
    generator = torch.Generator().manual_seed(0)
    sample, outputs = torch.randn(1, 4, 6, generator=generator), torch.randn(5, 1, 4, 6, generator=generator)

    def steps():
        from kinema.ops.scheduler_step import reference

        core = schedulers.core_from_config({"_class_name": name, **SCHEDULERS[name]})
        state = schedulers.start(core, core.grid(5), generator=torch.Generator().manual_seed(1))
        noisy = [schedulers.add_noise(reference, core, state.grid, 2, sample, outputs[0])]
        for output in outputs:
            noisy.append(schedulers.step(reference, state, noisy[-1], output))
        return [*noisy, state.tables, state.timesteps, state.grid.sigmas]

    wanted = steps()
    with hosts_default(default):
        got = steps()
    assert len(got) == 9
    assert all(
        ours.dtype == before.dtype and torch.equal(ours, before) for ours, before in zip(got, wanted, strict=True)
    )
