"""Benchmarks of tiny things: what is tested is the machinery, not the machine."""

import pytest


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    """Figures of the machine's peaks that take no time and mean nothing."""
    monkeypatch.setattr("kinema.bench.peaks.SIZES", {"cpu": (32,)})
    monkeypatch.setattr("kinema.bench.peaks.COPIED", {"cpu": 1 << 12})
    monkeypatch.setattr("kinema.bench.native_peak.SECONDS", 1e-5)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A Wan folder of random weights whose parts all take milliseconds."""
    from kinema.bench.published_configs import TRANSFORMER_1_3B, UMT5_XXL, VAE_21, Published, unipc
    from kinema.bench.random_model import write_random_model

    transformer = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
    transformer |= {"num_layers": 2, "text_dim": 24, "freq_dim": 32, "ffn_dim": 64}
    vae = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    vae |= {"latents_mean": [0.1, 0.2, -0.1, 0.3], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    text = {"vocab_size": 400, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    configs = ({**TRANSFORMER_1_3B, **transformer}, {**VAE_21, **vae}, unipc(3.0), {**UMT5_XXL, **text})
    return write_random_model(tmp_path_factory.mktemp("tiny") / "model", Published("WanPipeline", *configs))
