"""A step of the sample model with its forward replayed: the host's part, the gaps, and one, two and four requests."""

from __future__ import annotations

from typing import Any

from kinema.bench.gpu_session.profiles import summary
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.replay import Steps, changed, device_calls, nothing, waiting

SMALL = {"num_frames": 5, "height": 16, "width": 16}


def ask(session: Session) -> None:
    from kinema.pipeline import VideoPipeline

    options: dict[str, Any] = {"device": str(session.device), "precision": session.pick("bf16", "fp32")}
    clip: dict[str, Any] = session.pick({}, SMALL)
    samples, calls = session.pick(9, 2), session.pick(50, 2)

    def pipeline() -> VideoPipeline:
        return VideoPipeline.from_pretrained("sample", **options)

    empty = Steps(changed(pipeline(), nothing), **clip)
    launched = device_calls(empty)
    session.report(
        "the host between two replays",
        host_seconds=session.host_seconds(empty, samples=samples, calls=calls),
        calls=", ".join(f"{name} {count}" for name, count in sorted(launched.items())),
        waiting=", ".join(waiting(launched)) or "none",
    )
    pipe = pipeline()
    for count in (1, 2, 4):
        step = Steps(pipe, count, **clip)
        for _ in range(3):  # eager, recorded, replayed
            step()
        case = f"{count} together" if count > 1 else "one request"
        session.report(
            case,
            requests=count,
            seconds=session.seconds(step, samples=samples, flush=False),
            host_seconds=session.host_seconds(step, samples=samples, calls=calls),
        )
        session.report(f"{case}, profile", **summary(session.profile(step)))


QUESTION = Question(
    decides="whether the host runs ahead of a small model's steps, and what requests that share a step gain",
    serves="denoise/replay.py, denoise/step.py",
    value=8,
    seconds=25,
    needs=("tokenizers",),
    ask=ask,
)
