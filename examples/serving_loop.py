"""A server's loop, continuous batching by hand: python examples/serving_loop.py [folder for the clips]

Each turn admits what has arrived, takes one denoising step of every running request, whatever its size and however far
it is, and saves what is done. Requests of like shape share a forward; a result is the same alone, but for rounding.
"""

import sys
from pathlib import Path

from kinema import GenerationRequest, VideoPipeline
from kinema.denoise.state import RequestState

ARRIVALS = {  # turn: the request that comes in before it
    0: GenerationRequest("a red circle moving left", num_inference_steps=12, seed=0),
    3: GenerationRequest("a blue square moving up", num_inference_steps=6, seed=1),
    5: GenerationRequest("a green star", num_inference_steps=8, num_frames=9, seed=2),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipe = VideoPipeline.from_pretrained("sample")
    waiting, running, turn = dict(ARRIVALS), dict[int, RequestState](), 0
    while waiting or running:
        if turn in waiting:
            running[turn] = pipe.prepare(waiting.pop(turn))  # checks it, encodes its prompt, draws its noise
        pipe.step(list(running.values()))
        print(f"turn {turn}:", *(f"{state.step_index}/{state.num_steps}" for state in running.values()))
        for arrived, state in list(running.items()):
            if state.done:
                pipe.finish(running.pop(arrived)).videos[0].save(folder / f"request_{arrived}.mp4")
        turn += 1


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
