"""What ldmatrix, mma, wgmma, bulk tensor copies, barriers and conversions give, bit by bit: vectors for an emulator."""

from __future__ import annotations

from pathlib import Path

import torch

from kinema.bench.gpu_session.programs import found, run
from kinema.bench.gpu_session.question import Question, Session
from kinema.bench.gpu_session.vector_oracles import judge
from kinema.bench.gpu_session.vectors import read_recording

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "csrc" / "cuda" / "conformance" / "main.cu"
SAMPLE = ROOT / "tests" / "bench" / "gpu_session" / "samples" / "vectors"
SEED = 1
OPTIONS = ("-O2", "-std=c++17")


def ask(session: Session) -> None:
    if not SOURCE.is_file():
        session.skip("recording", "csrc/cuda/conformance is in a checkout and in the source archive alone")
        return
    nvcc = found("nvcc")
    if nvcc is None:
        session.skip("build", "needs nvcc")
        if not session.dry:
            return
    elif session.dry:
        built = session.folder / "conformance.cubin"
        _succeeded([nvcc, *OPTIONS, "-cubin", "-gencode", architecture((9, 0)), str(SOURCE), "-o", str(built)], 60.0)
    else:
        _record(session, nvcc)
    recording = read_recording(session.pick(session.folder, SAMPLE))
    session.report("recording", vectors=len(recording.vectors), head=dict(recording.head))
    for vector in recording.vectors:
        verdict = judge(vector)
        session.report(
            vector.name,
            instruction=vector.instruction,
            numbers=verdict.numbers,
            not_as_expected=verdict.wrong,
            error=verdict.error,
        )
    for name, why in recording.absent.items():
        session.skip(name, why)


def _record(session: Session, nvcc: str) -> None:
    program = session.folder / "conformance"
    gpu = architecture(torch.cuda.get_device_capability(session.device))
    _succeeded([nvcc, *OPTIONS, "-gencode", gpu, str(SOURCE), "-o", str(program)], 40.0)
    _succeeded([str(program), str(session.folder), str(SEED)], 15.0)
    program.unlink()


def architecture(capability: tuple[int, int]) -> str:
    """nvcc's target. Instructions specific to Hopper and its successors need the variants with an a."""
    number = f"{10 * capability[0] + capability[1]}{'a' if capability[0] >= 9 else ''}"
    return f"arch=compute_{number},code=sm_{number}"


def _succeeded(command: list[str], limit: float) -> None:
    """Raises RuntimeError with what was said if it fails."""
    said = run(command, limit)
    if said.code != 0:
        ended = "was stopped" if said.code is None else f"ended with {said.code}"
        raise RuntimeError(f"{Path(command[0]).name} {ended}: {said.text[-1500:]}")


QUESTION = Question(
    decides="whether the emulator's reading of fragments, descriptors, swizzles and roundings is the hardware's",
    serves="hand-written CUDA kernels and the emulator that tests them",
    value=9,
    seconds=30,
    ask=ask,
)
