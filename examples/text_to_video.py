"""A prompt to an mp4 with the sample model: python examples/text_to_video.py [out.mp4]"""

import sys

from kinema import VideoPipeline


def main(path: str) -> None:
    pipe = VideoPipeline.from_pretrained("sample")  # or the path of a diffusers-format folder
    output = pipe("a red circle moving left", negative_prompt="", num_inference_steps=20, guidance_scale=3.0, seed=0)
    output.videos[0].save(path)  # the suffix says the format: mp4, gif, webp, npy, …
    frames, height, width, _ = output.frames[0].shape  # NumPy, [T, H, W, 3] in [0, 1], as diffusers returns it
    print(f"{path}: {frames} frames of {width}×{height} pixels")
    print(output.stats)  # seconds per stage, peak memory, what ran each op


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "text_to_video.mp4")
