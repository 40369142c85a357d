"""A generation by diffusers in a process of its own: python diffusers_process.py FOLDER REQUEST THREADS OUTPUT.

It imports nothing of kinema. REQUEST is JSON: WanPipeline's arguments, the seed, and fps. The mp4 is written by PyAV,
as kinema's is. What it prints is JSON: the seconds of each stage.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

STAGES = ("start", "load", "text", "denoise", "decode and write")


def main(folder: str, request: dict[str, Any], threads: int, output: str) -> dict[str, float]:
    stamps = [time.perf_counter()]
    import av
    import torch
    from diffusers import WanPipeline

    torch.set_num_threads(threads)
    stamps.append(time.perf_counter())
    kind: Any = WanPipeline
    pipe = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    stamps.append(time.perf_counter())

    encode, decode = pipe.encode_prompt, pipe.vae.decode

    def stamp_after(call: Callable[..., Any]) -> Callable[..., Any]:
        def stamped(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            stamps.append(time.perf_counter())
            return result

        return stamped

    def stamp_before(call: Callable[..., Any]) -> Callable[..., Any]:
        def stamped(*args: Any, **kwargs: Any) -> Any:
            stamps.append(time.perf_counter())
            return call(*args, **kwargs)

        return stamped

    pipe.encode_prompt, pipe.vae.decode = stamp_after(encode), stamp_before(decode)
    rate = Fraction(request.pop("fps")).limit_denominator(1000)
    generator = torch.manual_seed(request.pop("seed"))  # the default one: a stochastic scheduler's noise comes from it
    frames = (pipe(**request, generator=generator, output_type="np").frames[0] * 255).round().astype("uint8")
    with av.open(output, "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    stamps.append(time.perf_counter())
    return dict(zip(STAGES, (after - before for before, after in pairwise(stamps)), strict=True))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
