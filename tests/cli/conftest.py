"""A tiny Wan folder with random weights, and the command line run in this process or in one of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def assert_refused(self, code: int, *phrases: str) -> None:
        """One clear line on stderr, nothing on stdout."""
        assert self.code == code, self
        assert self.err.count("\n") == 1 and self.err.endswith("\n"), self.err
        assert self.err.startswith("kinema") and "Traceback" not in self.err
        for phrase in phrases:
            assert phrase in self.err
        assert self.out == ""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kinema.bench.published_configs import TRANSFORMER_1_3B, UMT5_XXL, VAE_21, Published, unipc
    from kinema.bench.random_model import write_random_model

    transformer = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
    transformer |= {"num_layers": 2, "text_dim": 24, "freq_dim": 32, "ffn_dim": 64}
    vae = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    vae |= {"latents_mean": [0.1, 0.2, -0.1, 0.3], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    text_encoder = {"vocab_size": 400, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    published = Published(
        "WanPipeline",
        {**TRANSFORMER_1_3B, **transformer},
        {**VAE_21, **vae},
        unipc(3.0),
        {**UMT5_XXL, **text_encoder},
    )
    return write_random_model(tmp_path_factory.mktemp("tiny") / "model", published)


@pytest.fixture
def damaged(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny folder that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder for output. Whatever a test does, no temporary file stays in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """main() in this process."""
    from kinema.cli.main import main

    def run(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`kinema` in a process of its own; `before` is Python that runs there first."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, before: str = "", **options: Any) -> subprocess.Popen[str]:
        # a test run in the background ignores ctrl-C, and what it starts inherits that
        signals = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"import sys\n{signals}\n{before}\nfrom kinema.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        command = [sys.executable, "-c", code, *(str(word) for word in words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", **options.pop("env", {})}
        started.append(subprocess.Popen(command, text=True, env=environment, **{**pipes, **options}))
        return started[-1]

    yield start
    for running in started:
        with running:  # closes its pipes and waits
            running.kill()
