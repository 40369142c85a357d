"""The weights of one component folder: one safetensors file, or several with an index."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch

from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.opening import is_file, names_in
from kinema.checkpoints.safetensors import SafetensorsFile
from kinema.checkpoints.table import Table
from kinema.checkpoints.weights import Shapes
from kinema.errors import CheckpointError, listed, shown

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


class ComponentFiles(Mapping[str, torch.Tensor]):
    """Every tensor of a component folder, by name, whatever file it lies in.

    `files[name]` reads a fresh copy, `files.table(name)` reads the rows of a matrix on demand.
    `variant` picks files such as diffusion_pytorch_model.fp16.safetensors. Where a folder has both a single
    file and an index we load what the library that owns the name loads: diffusers the index, transformers
    the single file.
    """

    def __init__(self, folder: str | os.PathLike[str], variant: str | None = None) -> None:
        self.folder = Path(folder)
        found = _find(self.folder, variant)
        if found.suffix == ".json":
            self._home = _open_shards(found)
        else:
            file = SafetensorsFile(found)
            self._home = dict.fromkeys(file, file)

    @cached_property
    def files(self) -> tuple[SafetensorsFile, ...]:
        return tuple({id(file): file for file in self._home.values()}.values())

    def shapes(self) -> Shapes:
        return {name: shape for file in self.files for name, shape in file.shapes().items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: dtype for file in self.files for name, dtype in file.dtypes.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.nbytes for file in self.files)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._home[name][name]

    def table(self, name: str) -> Table:
        return self._home[name].table(name)

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def __repr__(self) -> str:
        return f"ComponentFiles({str(self.folder)!r}, {len(self.files)} files, {len(self)} tensors)"


def is_plain_name(name: str) -> bool:
    """Whether a file name cannot lead out of its folder, on any system.

    A symlink of a plain name is fine wherever it points: caches of the Hub are made of links to
    ../../blobs, and a link is put there by whoever made the folder, never by the text of an index.
    """
    return name not in ("", ".", "..") and not any(c in "/\\:\0" for c in name)


def weight_names(stem: str, variant: str | None = None) -> tuple[str, str]:
    """File names of a single file and of an index, as diffusers and transformers spell them."""
    part = f".{variant}" if variant else ""
    return f"{stem}{part}.safetensors", f"{stem}.safetensors.index{part}.json"


def variants(folder: Path) -> set[str]:
    """The variants that a component's folder has weights of; "" stands for the plain ones."""
    stems = "|".join((DIFFUSERS_STEM, TRANSFORMERS_STEM))
    named = re.compile(
        rf"(?:{stems})(?:\.([^.]+?))?\.safetensors|(?:{stems})\.safetensors\.index(?:\.([^.]+))?\.json", re.DOTALL
    )
    matches = [match for name in names_in(folder) if (match := named.fullmatch(name)) is not None]
    return {match[1] or match[2] or "" for match in matches}


def check_variant_name(variant: object) -> None:
    """CheckpointError unless it can be part of a file name."""
    if not isinstance(variant, str) or not is_plain_name(variant):
        raise CheckpointError(f"variant {shown(variant)} is not part of a file name: wanted one such as 'fp16'")


def _find(folder: Path, variant: str | None) -> Path:
    """The one safetensors file or index to load."""
    if variant is not None:
        check_variant_name(variant)
    present = names_in(folder)
    wanted = {stem: weight_names(stem, variant) for stem in (DIFFUSERS_STEM, TRANSFORMERS_STEM)}
    stems = [stem for stem, names in wanted.items() if any(name in present for name in names)]
    if len(stems) > 1:
        raise CheckpointError(
            f"{folder} is ambiguous: it holds {DIFFUSERS_STEM}* and {TRANSFORMERS_STEM}* weights; "
            "remove the ones that do not belong to this component"
        )
    if not stems:
        raise CheckpointError(_nothing_found(folder, variant, present, wanted))
    single, index = wanted[stems[0]]
    order = (index, single) if stems[0] == DIFFUSERS_STEM else (single, index)
    return folder / next(name for name in order if name in present)


def _nothing_found(folder: Path, variant: str | None, present: list[str], wanted: dict[str, tuple[str, str]]) -> str:
    looked_for = ", ".join(name for names in wanted.values() for name in names)
    safetensors = [name for name in present if ".safetensors" in name]
    pickles = [name for name in present if name.endswith(PICKLE_SUFFIXES)]
    if pickles and not safetensors:
        return (
            f"{folder} holds its weights only as pickle files ({listed(pickles)}), which can run code when they "
            "are read: kinema loads safetensors only. Convert them in an environment that you trust: in that "
            f"folder run `{conversion_command(pickles)}`"
        )
    there = f"it holds {listed(present, most=20)}" if present else "it is empty"
    return f"{folder} has no weights: looked for {looked_for}; {there}; {variant_advice(variants(folder))}"


def variant_advice(found: set[str]) -> str:
    """What to do where the weights of a variant, or the plain ones, are missing."""
    named = [repr(variant) for variant in sorted(found) if variant]
    if not found:
        return "download the folder again"
    if not named:
        return "leave the variant out: these are plain weights"
    return f"pass the variant {' or '.join(named)}{', or none' if '' in found else ''}"


def conversion_command(pickles: list[str]) -> str:
    """A shell command that rewrites pickled weights as one safetensors file."""
    # the names come from the folder and the command will be pasted into a shell
    named = [name for name in pickles if re.fullmatch(r"[\w.-]+", name)]
    weights = [n for n in named if n.startswith((DIFFUSERS_STEM, "pytorch_model"))] or named[:1] or ["FILE.bin"]
    stem = DIFFUSERS_STEM if weights[0].startswith(DIFFUSERS_STEM) else TRANSFORMERS_STEM
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"save_file({{k: v.clone().contiguous() for f in {weights} "
        "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
        f"'{stem}.safetensors', metadata={{'format': 'pt'}})\""
    )


def _open_shards(index: Path) -> dict[str, SafetensorsFile]:
    """{tensor name: its shard}, once the index and the shards agree."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensors to files; download it again")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not is_plain_name(name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} places tensor {shown(tensor)} in {shown(name)}: wanted the name of a .safetensors file in "
                "the same folder, without a path; do not use this checkpoint unless you know why it says so"
            )
    names = dict.fromkeys(weight_map.values())
    missing = [name for name in names if not is_file(index.parent / name)]
    if missing:
        raise CheckpointError(f"{index} names files that are missing: {listed(missing)}; download them again")

    shards = {name: SafetensorsFile(index.parent / name) for name in names}
    holders: dict[str, list[str]] = {}
    for name, shard in shards.items():
        for tensor in shard:
            holders.setdefault(tensor, []).append(name)
    problems = []
    for tensor, name in weight_map.items():
        found = holders.get(tensor, [])
        if name not in found:
            place = f"is in {listed(found, most=5)}" if found else "is nowhere"
            problems.append(f"{tensor} should be in {name} and {place}")
        elif len(found) > 1:
            problems.append(f"{tensor} is in both {' and '.join(found[:2])}")
    problems += [f"{t} in {found[0]} is not in the index" for t, found in holders.items() if t not in weight_map]
    if problems:
        raise CheckpointError(
            f"{index} does not match its files ({len(problems)} tensors): {listed(problems, '; ')}; "
            "download the folder again"
        )
    return {tensor: shard for shard in shards.values() for tensor in shard}
