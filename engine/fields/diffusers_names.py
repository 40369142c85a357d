"""What diffusers' pipelines have and kinema's lack: for each name, one line that says what to use instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from kinema.errors import RequestError

_MEMORY = "load with keep_loaded=False (--low-memory), which holds the parts of the running stage only"
_LORA = "merge the adapter with diffusers (load_lora_weights, fuse_lora, save_pretrained) and load that folder"
_TILING = "give the call tiling=kinema.vae.tiling.Tiling(); memory does not grow with the clip's length without it"
_KERNELS = "kernels are chosen when a model is loaded: backend= of from_pretrained forces one, `kinema doctor` says why"
_PRECISION = "choose it while loading: precision= of from_pretrained (fp32, bf16, fp16, fp8 or int8)"
_DEVICE = "choose it while loading: device= of from_pretrained (cpu, cuda or cuda:1)"
_HUB = "kinema downloads nothing: fetch the folder first (hf download) and give its path"
_TRAINING = "kinema is for inference: train with diffusers, and load the folder that it saves"
_TEXTS = "kinema.encoders.prompts.encode_texts(pipe.components, texts, 512) gives what prompt_embeds= takes"
_ABSENT = "no model that kinema loads has it: leave it out"

INSTEAD: dict[str, str] = {
    **dict.fromkeys(
        (
            *("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"),
            *("maybe_free_model_hooks", "remove_all_hooks", "reset_device_map", "hf_device_map"),
            "model_cpu_offload_seq",
        ),
        _MEMORY,
    ),
    **dict.fromkeys(
        (
            *("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora", "set_adapters", "add_adapter"),
            *("delete_adapters", "get_active_adapters", "get_list_adapters", "disable_lora", "enable_lora"),
            *("set_lora_device", "enable_lora_hotswap", "save_lora_weights", "lora_scale", "load_lora_adapter"),
            *("load_ip_adapter", "set_ip_adapter_scale", "load_textual_inversion"),
        ),
        _LORA,
    ),
    **dict.fromkeys(
        ("enable_vae_tiling", "disable_vae_tiling", "enable_tiling", "disable_tiling", "use_tiling"), _TILING
    ),
    **dict.fromkeys(
        ("enable_vae_slicing", "disable_vae_slicing", "enable_slicing", "disable_slicing", "use_slicing"),
        "videos of one call are decoded together; several calls take less memory",
    ),
    **dict.fromkeys(
        (
            *("enable_attention_slicing", "disable_attention_slicing", "set_attention_slice", "set_attn_processor"),
            *("enable_xformers_memory_efficient_attention", "disable_xformers_memory_efficient_attention"),
            *("set_attention_backend", "reset_attention_backend", "attn_processors", "fuse_qkv_projections"),
            *("unfuse_qkv_projections", "compile", "compile_repeated_blocks"),
        ),
        _KERNELS,
    ),
    **dict.fromkeys(("half", "float", "bfloat16", "quantize", "enable_layerwise_casting"), _PRECISION),
    **dict.fromkeys(("cuda", "cpu"), _DEVICE),
    **dict.fromkeys(
        ("enable_cache", "disable_cache"),
        "a cache belongs to a call: cache= of it takes kinema.caches' configurations (of a transformer alone: "
        "pipe.transformer.enable_cache)",
    ),
    **dict.fromkeys(("enable_freeu", "disable_freeu", "enable_parallelism"), "there is no such filter: leave it out"),
    **dict.fromkeys(
        ("train", "requires_grad_", "enable_gradient_checkpointing", "parameters", "state_dict", "load_state_dict"),
        _TRAINING,
    ),
    "eval": "parts are loaded ready for inference",
    "save_pretrained": "weights are packed for this machine, so they cannot be saved: copy the folder they came from",
    "push_to_hub": "kinema uploads nothing",
    **dict.fromkeys(("download", "name_or_path"), _HUB),
    "from_single_file": "give a folder in the diffusers format: diffusers' from_single_file and save_pretrained do",
    "from_pipe": "one pipeline does everything that its model can: text-, image- and video-to-video",
    **dict.fromkeys(("encode_prompt", "_get_t5_prompt_embeds"), _TEXTS),
    "prepare_latents": "kinema.schedulers.draw_noise draws them, and latents= of the call takes them",
    "check_inputs": "kinema.GenerationRequest checks what is asked",
    "progress_bar": "progress= of the call, or set_progress_bar_config(disable=…)",
    "video_processor": "kinema.media.preprocess and kinema.media.postprocess do its work",
    "image_processor": "pipe.components['image_processor']",
    "config": "pipe.folder.index is model_index.json, and each part has a config",
    "safety_checker": _ABSENT,
    "feature_extractor": _ABSENT,
    "unet": "the model is pipe.transformer",
}

LOAD_INSTEAD: dict[str, str] = {
    **dict.fromkeys(
        (
            *("cache_dir", "revision", "token", "use_auth_token", "force_download", "resume_download", "proxies"),
            *("mirror", "output_loading_info", "subfolder", "local_dir", "custom_revision"),
        ),
        _HUB,
    ),
    **dict.fromkeys(("custom_pipeline", "trust_remote_code"), "no code of a model folder is ever run: leave it out"),
    **dict.fromkeys(("device_map",), _DEVICE),
    **dict.fromkeys(("max_memory", "offload_folder", "offload_state_dict", "offload_buffers"), _MEMORY),
    "quantization_config": _PRECISION,
    **dict.fromkeys(("use_onnx", "provider", "sess_options", "provider_options", "use_flashpack"), _KERNELS),
    "disable_mmap": "weights are copied out of their files while they are loaded: leave it out",
    **dict.fromkeys(("safety_checker", "feature_extractor", "requires_safety_checker"), _ABSENT),
    "boundary_ratio": "it is read from model_index.json",
    "expand_timesteps": "it is read from model_index.json",
}

CALL_INSTEAD: dict[str, str] = {
    **dict.fromkeys(("callback", "callback_steps"), "give callback_on_step_end=, which is called after every step"),
    "num_images_per_prompt": "num_videos_per_prompt=, and num_frames=1 for pictures",
    **dict.fromkeys(("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs"), _LORA),
    **dict.fromkeys(
        ("timesteps", "sigmas", "eta"), "the scheduler chooses its steps: pipe.scheduler = … takes another one"
    ),
    **dict.fromkeys(("guidance_rescale", "clip_skip", "use_cfg_zero_star"), _ABSENT),
    "fps": "frames per second belong to the file: out.videos[0].fps, or --fps",
}


class NoSuchAttribute(RequestError, AttributeError):
    """An attribute that diffusers has and kinema lacks, or that neither has; the message says what to use."""


class _Advising(type):
    _instead: Mapping[str, str]

    def __getattr__(cls, name: str) -> Any:
        raise lacks(cls, name)


class DiffusersNames(metaclass=_Advising):
    """Refuses, with advice, names that the diffusers class of its kind has and it lacks. `_instead`: its own advice."""

    _instead: Mapping[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):  # a property that failed: its own error says more
            return object.__getattribute__(self, name)
        raise lacks(type(self), name)


def lacks(owner: _Advising, name: str) -> NoSuchAttribute:
    """The error for an attribute that `owner` does not have."""
    advice = owner._instead.get(name) or INSTEAD.get(name)
    if advice is None and (close := get_close_matches(name, dir(owner), n=1, cutoff=0.8)):
        advice = f"did you mean {close[0]}?"
    return NoSuchAttribute(f"{owner.__name__} has no {name!r}{f': {advice}' if advice else ''}")


def unknown(names: Iterable[str], known: Iterable[str], instead: Mapping[str, str]) -> RequestError:
    """The error for parameters that a call does not take."""
    listed = list(names)
    advice = next((f"{name}: {instead[name]}" for name in listed if name in instead), None)
    if advice is not None:
        return RequestError(f"unknown parameter {advice}")
    return RequestError(f"unknown parameter {', '.join(listed)}: wanted some of {', '.join(known)}")
