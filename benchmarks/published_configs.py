"""The configs of the published Wan checkpoints, in diffusers' format.

Source: huggingface/diffusers, scripts/convert_wan_to_diffusers.py, which wrote the published folders, and
Wan-Video/Wan2.2, wan/modules/vae2_2.py, for the latent statistics of the 2.2 VAE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kinema.families.wan.vae.config import WAN21_MEAN, WAN21_STD

Config = dict[str, Any]


def transformer(**sizes: Any) -> Config:
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None,
        "attention_head_dim": 128,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "freq_dim": 256,
        "image_dim": None,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": 4096,
        **sizes,
    }


TRANSFORMER_1_3B = transformer(ffn_dim=8960, num_attention_heads=12, num_layers=30)
TRANSFORMER_14B = transformer(ffn_dim=13824, num_attention_heads=40, num_layers=40)
TRANSFORMER_14B_I2V = {**TRANSFORMER_14B, "in_channels": 36}
TRANSFORMER_14B_I2V_CLIP = {**TRANSFORMER_14B_I2V, "image_dim": 1280, "added_kv_proj_dim": 5120}
TRANSFORMER_5B = transformer(ffn_dim=14336, num_attention_heads=24, num_layers=30, in_channels=48, out_channels=48)

VAE_21: Config = {
    "_class_name": "AutoencoderKLWan",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "latents_mean": list(WAN21_MEAN),
    "latents_std": list(WAN21_STD),
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}

VAE_22: Config = {
    "_class_name": "AutoencoderKLWan",
    "attn_scales": [],
    "base_dim": 160,
    "clip_output": False,
    "decoder_base_dim": 256,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "in_channels": 12,
    "is_residual": True,
    "latents_mean": [
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
        *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
        *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
        *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
        *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ],
    "latents_std": [
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
        *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
        *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
        *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
        *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ],
    "num_res_blocks": 2,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "temperal_downsample": [False, True, True],
    "z_dim": 48,
}

UMT5_XXL: Config = {
    "architectures": ["UMT5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "umt5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "scalable_attention": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "use_cache": True,
    "vocab_size": 256384,
}

CLIP_VIT_H: Config = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
}

CLIP_PREPROCESSOR: Config = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


def unipc(flow_shift: float) -> Config:
    return {
        "_class_name": "UniPCMultistepScheduler",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "disable_corrector": [],
        "dynamic_thresholding_ratio": 0.995,
        "final_sigmas_type": "zero",
        "flow_shift": flow_shift,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "solver_order": 2,
        "solver_p": None,
        "solver_type": "bh2",
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "linspace",
        "trained_betas": None,
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_flow_sigmas": True,
        "use_karras_sigmas": False,
    }


@dataclass(frozen=True)
class Published:
    """One published pipeline: its class, its options and the config of every part. experts: transformers."""

    pipeline_class: str
    transformer: Config
    vae: Config
    scheduler: Config
    text_encoder: Config = field(default_factory=lambda: UMT5_XXL)
    image_encoder: Config | None = None
    experts: int = 1
    options: Config = field(default_factory=dict)


PRESETS: dict[str, Published] = {
    "wan2.1-t2v-1.3b": Published("WanPipeline", TRANSFORMER_1_3B, VAE_21, unipc(3.0)),
    "wan2.1-t2v-14b": Published("WanPipeline", TRANSFORMER_14B, VAE_21, unipc(3.0)),
    "wan2.1-i2v-14b": Published(
        "WanImageToVideoPipeline", TRANSFORMER_14B_I2V_CLIP, VAE_21, unipc(3.0), image_encoder=CLIP_VIT_H
    ),
    "wan2.2-t2v-a14b": Published(
        "WanPipeline", TRANSFORMER_14B, VAE_21, unipc(3.0), experts=2, options={"boundary_ratio": 0.875}
    ),
    "wan2.2-i2v-a14b": Published(
        "WanImageToVideoPipeline",
        TRANSFORMER_14B_I2V,
        VAE_21,
        unipc(3.0),
        experts=2,
        options={"boundary_ratio": 0.9},
    ),
    "wan2.2-ti2v-5b": Published("WanPipeline", TRANSFORMER_5B, VAE_22, unipc(5.0), options={"expand_timesteps": True}),
}
