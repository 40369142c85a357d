"""What a user of diffusers' pipelines types: it does the same here, or one line says what to use instead."""

import sys

import numpy as np
import pytest
import torch

import kinema
from kinema import schedulers
from kinema.errors import CheckpointError, KinemaError, RequestError
from kinema.fields.diffusers_names import CALL_INSTEAD, INSTEAD, LOAD_INSTEAD
from kinema.schedulers import Scheduler

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24},
    **{"num_inference_steps": 4, "guidance_scale": 3.0},
}
TOLERANCE = 1e-5


def one_line(error, name):
    message = str(error)
    assert "\n" not in message and name in message and len(message) < 400, message


OF_A_PIPELINE = [
    *["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload", "hf_device_map"],
    *["load_lora_weights", "unload_lora_weights", "fuse_lora", "set_adapters", "enable_vae_tiling"],
    *["enable_vae_slicing", "enable_attention_slicing", "enable_xformers_memory_efficient_attention"],
    *["save_pretrained", "push_to_hub", "encode_prompt", "check_inputs", "prepare_latents", "progress_bar"],
    *["config", "name_or_path", "maybe_free_model_hooks", "remove_all_hooks", "set_lora_device"],
]


@pytest.mark.parametrize("name", OF_A_PIPELINE)
def test_what_a_pipeline_lacks_is_answered(models, name):
    pipe = models("t2v").ours
    assert hasattr(models("t2v").theirs, name) or name in ("enable_vae_tiling", "enable_vae_slicing")
    with pytest.raises(AttributeError, match=f"VideoPipeline has no '{name}': .*") as refused:
        getattr(pipe, name)
    one_line(refused.value, name)
    assert isinstance(refused.value, KinemaError) and not hasattr(pipe, name)


@pytest.mark.parametrize("name", ["from_single_file", "from_pipe", "download", "load_lora_weights"])
def test_what_the_class_lacks_is_answered(name):
    with pytest.raises(AttributeError, match=f"VideoPipeline has no '{name}': "):
        getattr(kinema.VideoPipeline, name)


@pytest.mark.parametrize(
    ("part", "name", "advice"),
    [
        ("vae", "enable_tiling", "tiling="),
        ("vae", "enable_slicing", "calls"),
        ("vae", "half", "precision="),
        ("transformer", "set_attention_backend", "backend="),
        ("transformer", "enable_gradient_checkpointing", "inference"),
        ("transformer", "load_lora_adapter", "merge"),
        ("text_encoder", "eval", "ready"),
    ],
)
def test_what_a_part_lacks_is_answered(models, part, name, advice):
    with pytest.raises(AttributeError, match=f"has no '{name}': .*{advice}"):
        getattr(getattr(models("t2v").ours, part), name)


def test_other_names_are_no_attributes_either(models):
    with pytest.raises(AttributeError, match=r"VideoPipeline has no 'speed'$"):
        _ = models("t2v").ours.speed


def test_every_name_of_diffusers_is_there_or_answered(models):
    """Public attributes and methods of its pipeline, transformer and VAE; what belongs to torch or its Hub apart."""
    theirs, ours = models("t2v").theirs, models("t2v").ours
    expected = {name for name in dir(theirs) if not name.startswith("_")}
    known = {name for name in dir(ours) if not name.startswith("_")} | set(INSTEAD)
    assert sorted(expected - known - PRIVATE) == []


PRIVATE = {
    *{
        "add_weighted_adapter",
        "cls",
        "config_name",
        "from_config",
        "ignore_for_config",
        "load_config",
        "get_config_dict",
    },
    *{"register_modules", "register_to_config", "save_config", "to_json_file", "to_json_string", "extract_init_dict"},
    *{"fused_loras", "num_fused_loras", "transformer_name", "lora_state_dict", "load_lora_into_transformer"},
    *{"pack_weights", "process_weights", "save_function", "write_lora_layers", "numpy_to_pil", "set_attn_processor"},
    *{"vae_scale_factor_spatial", "vae_scale_factor_temporal", "num_timesteps", "current_timestep", "interrupt"},
    *{"guidance_scale", "do_classifier_free_guidance", "attention_kwargs", "enable_lora_hotswap"},
    *{"has_compatibles", "register_for_auto_class"},
    *{"set_use_memory_efficient_attention_xformers", "dummy_torch_import", "load_lora_into_text_encoder"},
}


def test_what_would_be_ignored_cannot_be_set(models):
    pipe = models("t2v").ours
    for name in ("safety_checker", "config", "unet", "enable_model_cpu_offload"):
        with pytest.raises(AttributeError, match=f"has no '{name}'"):
            setattr(pipe, name, None)


@pytest.mark.parametrize("name", sorted(LOAD_INSTEAD))
def test_loading_options_of_diffusers_are_answered(models, name):
    with pytest.raises(RequestError, match=f"unknown parameter {name}: ") as refused:
        models.fresh("t2v", **{name: "x"})
    one_line(refused.value, name)


@pytest.mark.parametrize("name", sorted(CALL_INSTEAD))
def test_call_arguments_of_diffusers_are_answered(models, name):
    with pytest.raises(RequestError, match=f"unknown parameter {name}: ") as refused:
        models("t2v").ours(**CALL, **{name: 3})
    one_line(refused.value, name)


LOADED = {
    "harmless": ({"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": True}, "fp32"),
    "unsaid": ({"use_safetensors": None, "local_files_only": False, "torch_dtype": None}, "fp32"),
    "float32": ({"torch_dtype": torch.float32}, "fp32"),
    "bfloat16": ({"torch_dtype": torch.bfloat16}, "bf16"),
    "float16": ({"dtype": torch.float16}, "fp16"),
    "auto": ({"torch_dtype": "auto", "precision": "int8"}, "int8"),
    "both": ({"torch_dtype": torch.bfloat16, "precision": "bf16"}, "bf16"),
}


@pytest.mark.parametrize(("given", "precision"), LOADED.values(), ids=LOADED.keys())
def test_loading_options_that_mean_what_kinema_does(models, given, precision):
    assert models.fresh("t2v", **given).ops.plan.target.precision.name == precision


REFUSED = {
    "pickles": ({"use_safetensors": False}, "use_safetensors is False: kinema reads safetensors"),
    "two precisions": ({"torch_dtype": torch.bfloat16, "precision": "fp16"}, "disagree: give precision alone"),
    "double": ({"torch_dtype": torch.float64}, "torch_dtype is torch.float64: wanted .*precision="),
    "by part": ({"torch_dtype": {"vae": torch.float32}}, "torch_dtype is .*: wanted .*precision="),
    "text": ({"dtype": "bf16"}, "dtype is 'bf16': wanted .*precision="),
    "no encoder": ({"text_encoder": None}, "text_encoder is a NoneType: wanted a part that kinema loaded"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_loading_options_that_mean_something_else(models, given, message):
    with pytest.raises(RequestError, match=message):
        models.fresh("t2v", **given)


def test_to_its_own_device_is_no_step(models):
    pipe = models("t2v").ours
    assert pipe.to("cpu") is pipe.to(torch.device("cpu"), torch.float32) is pipe.to(device="cpu", dtype=None) is pipe
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    narrow = models.fresh("t2v", precision="bf16")
    assert narrow.to("cpu", torch.bfloat16) is narrow


@pytest.mark.parametrize(
    ("where", "advice"),
    [
        (("cuda",), "on cpu, not on 'cuda': .*device="),
        ((torch.device("cuda", 1),), "device="),
        ((torch.float16,), "in torch.float32, not torch.float16: .*precision="),
        (("cpu", torch.float16), "precision="),
        (("tpu",), "device="),
        (([],), "device="),
    ],
)
def test_to_another_device_or_dtype_is_answered(models, where, advice):
    with pytest.raises(RequestError, match=advice):
        models("t2v").ours.to(*where)


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize(
    ("config", "progress", "shown"),
    [
        ({}, None, True),
        ({"disable": True}, None, False),
        ({"disable": True}, True, True),
        ({"disable": False}, False, False),
        ({"disable": None, "desc": "denoising"}, None, True),
    ],
)
def test_the_progress_bar_is_configured(models, monkeypatch, config, progress, shown):
    pipe, terminal = models.fresh("t2v"), Terminal()
    pipe.set_progress_bar_config(**config)
    monkeypatch.setattr(sys, "stderr", terminal)
    pipe(**CALL, progress=progress, output_type="latent")
    assert ("4/4" in terminal.text) == shown
    assert ("denoising" in terminal.text) == ("desc" in config)


def test_the_progress_bar_takes_no_other_options(models):
    with pytest.raises(RequestError, match="leave out ncols, colour"):
        models("t2v").ours.set_progress_bar_config(ncols=80, colour="red")


def test_parts_are_read_as_they_are_loaded_alone(models):
    pipe = models.fresh("t2v")
    alone = kinema.load_transformer(models("t2v").folder / "transformer", device="cpu")
    given = (torch.randn(1, 4, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 9, 24))
    assert torch.equal(pipe.transformer(*given), alone(*given))
    assert pipe.transformer_2 is None and pipe.image_encoder is None
    assert pipe.vae.config.z_dim == 4 and pipe.text_encoder.config.d_model == 24
    assert pipe.tokenizer(["a red circle"], 8)[0].shape == (1, 8)
    assert set(pipe.components) == {"transformer", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert pipe.components["vae"] is pipe.vae and len(dict(pipe.components)) == 5
    assert pipe.components.loaded and isinstance(pipe.components["scheduler"], Scheduler)
    with pytest.raises(KeyError):
        _ = pipe.components["unet"]


def test_parts_of_ours_are_taken_before_a_call(models, tmp_path):
    """Here: those of the same model under other weights, alone and by from_pretrained."""
    pipe, other = models.fresh("t2v", keep_loaded=False), models.fresh("t2v")
    changed = other.components.transformer()
    changed.table.mul_(1.5)
    expected = other(**CALL, seed=1).frames
    assert not np.array_equal(pipe(**CALL, seed=1).frames, expected)
    pipe.transformer = other.transformer
    assert np.array_equal(pipe(**CALL, seed=1).frames, expected)
    assert pipe.components.loaded == ("transformer",), "what was given stays; it cannot be loaded again"
    again = kinema.VideoPipeline.from_pretrained(
        models("t2v").folder, device="cpu", transformer=other.transformer, vae=other.vae, tokenizer=other.tokenizer
    )
    assert np.array_equal(again(**CALL, seed=1).frames, expected)
    narrow = kinema.load_transformer(models("t2v").folder / "transformer", device="cpu", precision="bf16")
    again.transformer = narrow
    assert np.abs(again(**CALL, seed=1).frames - expected).max() > 0


def test_other_parts_are_refused_at_once(models):
    pipe, theirs = models.fresh("t2v"), models("t2v").theirs
    cases = {
        "transformer": (theirs.transformer, "wanted a part that kinema loaded"),
        "vae": (theirs.vae, "vae is a AutoencoderKLWan: wanted a part that kinema loaded"),
        "text_encoder": (models("t2v").ours.vae, "text_encoder is a WanVAE"),
        "tokenizer": (theirs.tokenizer, "tokenizer is a "),
        "transformer_2": (models("t2v").ours.transformer, "this model has no transformer_2"),
    }
    for name, (part, message) in cases.items():
        with pytest.raises(RequestError, match=message):
            setattr(pipe, name, part)
    with pytest.raises(RequestError, match=r"transformer has in_channels=12, the model's has 4"):
        pipe.transformer = models("i2v_experts").ours.transformer
    assert pipe.components.loaded == ()


SCHEDULERS = {
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0},
    "FlowMatchEulerDiscreteScheduler": {"shift": 5.0},
    "DPMSolverMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0},
}


@pytest.mark.parametrize(("name", "config"), SCHEDULERS.items(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_scheduler_takes_the_place_of_the_models(models, name, config, whose):
    import diffusers

    model, theirs = models("t2v"), getattr(diffusers, name)(**config)
    pipe = models.fresh("t2v")
    pipe.scheduler = theirs if whose == "theirs" else schedulers.from_config({"_class_name": name, **config})
    assert isinstance(pipe.scheduler, Scheduler) and pipe.scheduler.config["_class_name"] == name
    other = type(model.theirs)(**{**model.theirs.components, "scheduler": theirs})
    other.set_progress_bar_config(disable=True)
    expected = other(**CALL, generator=torch.Generator().manual_seed(3)).frames
    assert np.abs(expected - pipe(**CALL, seed=3).frames).max() <= TOLERANCE
    assert np.abs(expected - model.ours(**CALL, seed=3).frames).max() > 1e-3


def test_the_schedulers_configuration_makes_another(models):
    """As with diffusers: pipe.scheduler = Class.from_config(pipe.scheduler.config, flow_shift=…)."""
    pipe = models.fresh("t2v")
    own = pipe.scheduler
    pipe.scheduler = schedulers.from_config({**pipe.scheduler.config, "flow_shift": 7.0})
    assert pipe.scheduler.config.flow_shift == 7.0 and own.config.flow_shift == 3.0


def test_a_run_keeps_the_scheduler_that_it_began_with(models):
    pipe = models.fresh("two_experts")
    call = {**CALL, "num_inference_steps": 6, "seed": 3}
    expected = pipe(**call).frames
    state = pipe.prepare(kinema.GenerationRequest(**call))
    pipe.step([state])
    pipe.scheduler = schedulers.from_config(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 50}
    )
    while not state.done:
        pipe.step([state])
    assert np.array_equal(pipe.finish(state).frames, expected)
    with pytest.raises(
        RequestError, match="num_inference_steps is 51: FlowMatchEulerDiscreteScheduler has 50 timesteps"
    ):
        pipe(**{**call, "num_inference_steps": 51})


@pytest.mark.parametrize("wrong", ["unipc", None, 5, {"flow_shift": 3.0}, Scheduler, object()])
def test_what_is_no_scheduler_is_refused_at_once(models, wrong):
    pipe = models.fresh("t2v")
    before = pipe.scheduler
    with pytest.raises(RequestError, match=r"scheduler is .*: wanted one from kinema\.schedulers"):
        pipe.scheduler = wrong
    assert pipe.scheduler is before


def test_a_scheduler_that_kinema_does_not_have_is_refused_at_once(models):
    from diffusers import EulerDiscreteScheduler

    with pytest.raises(CheckpointError, match=r"EulerDiscreteScheduler.*not supported; wanted one of"):
        models.fresh("t2v").scheduler = EulerDiscreteScheduler()
