"""The sample model generates, 20 steps: forwards as one CUDA graph and launch by launch; stages, the frames' hash."""

from __future__ import annotations

from typing import Any

from kinema.bench.generate import measure
from kinema.bench.gpu_session.question import Question, Session

PROMPT = "a red circle moving left"
BEFORE = 0.125  # seconds of a generation, measured when each request recorded its own forward
ROUNDS = 4  # after the first, which loads and builds
SMALL = {"num_inference_steps": 2, "num_frames": 5, "height": 16, "width": 16}


def ask(session: Session) -> None:
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest

    hashes: dict[str, list[str]] = {}
    for case, graphs in (("recorded", True), ("eager", False)):
        options: dict[str, Any] = {"precision": session.pick("bf16", "fp32"), "cuda_graphs": graphs}
        pipe = VideoPipeline.from_pretrained("sample", device=str(session.device), **options)
        size: dict[str, Any] = session.pick({"num_inference_steps": 20}, SMALL)
        request = pipe.complete(GenerationRequest(PROMPT, seed=0, **size))
        rounds = [measure(pipe, request) for _ in range(1 + session.pick(ROUNDS, 1))]
        (first, _), measured = rounds[0], [stats for stats, _ in rounds[1:]]
        hashes[case] = sorted({digest for _, digest in rounds})
        stages = [name for name in measured[0].seconds if all(stats.seconds.get(name, 0) > 0 for stats in measured)]
        session.report(
            case,
            steps=measured[0].steps,
            frames_sha256=hashes[case],
            same_frames=hashes[case] == hashes["recorded"],
            first_seconds=first.total_seconds,
            seconds=[stats.total_seconds for stats in measured],
            before_seconds=BEFORE,
            **{f"{name}_seconds": [stats.seconds[name] for stats in measured] for name in stages},
        )


QUESTION = Question(
    decides="what a small model's generation takes, stage by stage, and what CUDA graphs save of it",
    serves="the pipeline, cuda_graph",
    value=6,
    seconds=25,
    needs=("tokenizers",),
    ask=ask,
)
