"""A request's peak memory against its prediction: Wan 1.3B's sizes with few layers, and the sample model."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kinema.bench.gpu_session.drawn import Drawn
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.published_configs import PRESETS, UMT5_XXL, Published
from kinema.bench.random_model import write_random_model

if TYPE_CHECKING:  # they need libraries that a machine with a GPU may lack
    from kinema.denoise.state import RequestState
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest

LAYERS = 4
STEPS = 3  # eager, recorded, replayed
WHOLE = {"num_frames": 81, "height": 480, "width": 832}
SHORT = {**WHOLE, "num_frames": 17}  # decoded in seconds; a longer clip holds no more activations
TINY = {"num_frames": 5, "height": 16, "width": 16}
TEXT = {"vocab_size": 400, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 3}  # never asked
SMALL_TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "text_dim": 24, "freq_dim": 32}
SMALL_VAE = {"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}


def ask(session: Session) -> None:
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest

    published = replace(PRESETS["wan2.1-t2v-1.3b"], text_encoder={**UMT5_XXL, **TEXT})
    with tempfile.TemporaryDirectory() as folder:
        _generate(session, Path(folder), session.pick(published, _small(published)))
    pipe = VideoPipeline.from_pretrained("sample", device=str(session.device), precision=session.pick("bf16", "fp32"))
    size: dict[str, Any] = session.pick({}, {**TINY, "num_inference_steps": 2})
    _measure(session, "the sample, whole", pipe, GenerationRequest("a red circle moving left", seed=0, **size))


def _generate(session: Session, folder: Path, published: Published) -> None:
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest

    write_random_model(folder, published, dtype=torch.bfloat16, layers=session.pick(LAYERS, 1))
    pipe = VideoPipeline.from_pretrained(folder, device=str(session.device), precision="bf16")
    new, width = Drawn(session.device), pipe.transformer_config.text_dim
    embeds = {name: new(1, session.pick(512, 8), width) for name in ("prompt_embeds", "negative_prompt_embeds")}
    for case, size, output in (
        ("1.3B, 81 frames, denoised", WHOLE, "latent"),
        ("1.3B, 17 frames, denoised and decoded", SHORT, "np"),
    ):
        given: dict[str, Any] = {**session.pick(size, TINY), **embeds, "output_type": output}
        request = GenerationRequest(guidance_scale=5.0, num_inference_steps=STEPS, seed=0, **given)
        _measure(session, case, pipe, request)


def _measure(session: Session, case: str, pipe: VideoPipeline, request: GenerationRequest) -> None:
    """Stage by stage; the allocator's cache is emptied between them. Every part stays loaded."""
    from kinema.memory.predict import predict

    request = pipe.complete(request)
    prediction = predict(pipe.model, request, pipe.ops.plan, pipe.options)
    states: list[RequestState] = []

    def denoise() -> None:
        states.append(pipe.prepare(request))
        while not states[0].done:
            pipe.step(states)

    peaks = {"denoise": session.peak(denoise)}
    if request.output_type != "latent":
        peaks["decode"] = session.peak(lambda: pipe.finish(states[0]))
    for stage, peak in peaks.items():
        session.report(
            f"{case}, {stage}",
            predicted_bytes=prediction.stages[stage],
            predicted_weights_bytes=sum(prediction.parts.values()),
            allocated_bytes=peak.allocated,
            reserved_bytes=peak.reserved,
            before_bytes=peak.before,
            of_predicted=peak.reserved / prediction.stages[stage],
        )


def _small(published: Published) -> Published:
    return replace(
        published,
        transformer={**published.transformer, **SMALL_TRANSFORMER},
        vae={**published.vae, **SMALL_VAE},
    )


QUESTION = Question(
    decides="by how much the prediction is below what a guided request really holds, graph included",
    serves="memory/predict.py, families/wan/memory.py",
    value=7,
    seconds=40,
    needs=("tokenizers",),
    ask=ask,
)
