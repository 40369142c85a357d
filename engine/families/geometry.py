"""Which clips a model can make, and how large their latents are."""

from __future__ import annotations

from dataclasses import dataclass

from kinema.errors import RequestError

LatentSize = tuple[int, int, int]  # (T, h, w)


@dataclass(frozen=True)
class Geometry:
    """How pixels become latents and latents become tokens: factors along (T, H, W)."""

    temporal: int
    spatial: int
    patch: tuple[int, int, int]

    def latent_size(self, num_frames: int, height: int, width: int) -> LatentSize:
        """(T, h, w) of the latents. Raises RequestError naming the nearest clips that the model can make."""
        problems = []
        below = self.longest(num_frames)
        if num_frames != below:
            near = [below, below + self.frame_step] if num_frames > below else [below]
            problems.append(f"num_frames {num_frames} (nearest {_either(near)})")
        for name, size, patch in (("height", height, self.patch[1]), ("width", width, self.patch[2])):
            multiple = self.spatial * patch
            if size % multiple:
                below = size // multiple * multiple
                near = [n for n in (below, below + multiple) if n > 0]
                problems.append(f"{name} {size} (nearest {_either(near)})")
        if problems:
            raise RequestError(f"this model cannot make {', '.join(problems)}")
        return (num_frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial

    @property
    def frame_step(self) -> int:
        """By how many frames the lengths of clips differ."""
        return self.temporal * self.patch[0]

    @property
    def shortest(self) -> int:
        """Frames of the shortest clip: one is one latent frame, and latent frames come in temporal patches."""
        return 1 + self.temporal * (self.patch[0] - 1)

    def longest(self, num_frames: int) -> int:
        """Frames of the longest clip that has no more than `num_frames`; of the shortest one if none is so short."""
        return max(self.shortest, num_frames - (num_frames - self.shortest) % self.frame_step)

    def tokens(self, latent_size: LatentSize) -> int:
        """S: patches of a latent clip."""
        t, h, w = (n // p for n, p in zip(latent_size, self.patch, strict=True))
        return t * h * w


def _either(sizes: list[int]) -> str:
    return " or ".join(str(size) for size in sizes)
