"""What an import costs, and what it may not need."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from statistics import median

import pytest

OPTIONAL = ("triton", "sentencepiece", "flash_attn")
TESTS_ONLY = ("diffusers", "transformers", "accelerate", "ftfy", "pytest", "sklearn", "scipy")


def run(code: str, **options) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cpu_seconds(code: str) -> float:
    """Of the processor, and not of the clock: the figure is the same on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(
    "code",
    [
        "import kinema",
        "from kinema.cli.main import main; main(['--version'])",
        "from kinema.cli.main import main; main(['--help'])",
    ],
)
def test_import_is_quick(code):
    rounds = [(cpu_seconds("pass"), cpu_seconds(code)) for _ in range(5)]
    assert median(ours - plain for plain, ours in rounds) < 0.3


def test_import_does_not_import_torch():
    loaded = run("import kinema, sys; print(*sys.modules)").split()
    assert "kinema" in loaded
    assert not {"torch", "numpy", "av", "PIL", "safetensors", "tokenizers"} & set(loaded)


def test_every_public_name_is_there():
    run("import kinema\nfor name in kinema.__all__: assert getattr(kinema, name) is not None\nassert dir(kinema)")


def test_every_module_imports_without_what_only_tests_need():
    """And without Triton, except for the files that are Triton kernels."""
    code = f"""
import importlib, pkgutil, sys
for name in {OPTIONAL + TESTS_ONLY}:
    sys.modules[name] = None
import kinema
count = 0
for module in pkgutil.walk_packages(kinema.__path__, "kinema."):
    if module.name != "kinema.__main__" and not module.name.endswith(".triton"):
        importlib.import_module(module.name)
        count += 1
print(count)
"""
    assert int(run(code)) > 80


WITHOUT_PICTURES = """
import sys, torch
for name in ("av", "PIL", "tokenizers", "safetensors", "sentencepiece", "tqdm", "triton"):
    sys.modules[name] = None
import kinema
from kinema.errors import KinemaError
pipe = kinema.VideoPipeline.from_pretrained("sample", device="cpu")
embeds = torch.zeros(1, 4, pipe.transformer_config.text_dim)
call = dict(prompt_embeds=embeds, height=32, width=32, num_frames=5, num_inference_steps=1, guidance_scale=1, seed=0)
for output_type in ("np", "pt", "latent"):
    out = pipe(**call, output_type=output_type, progress=False)
    print(output_type, *out.frames.shape)
video = pipe(**call, progress=False).videos[0]
video.save("out.npy")
print(pipe(**call | {"num_frames": 1}, progress=False).videos[0])
unit = torch.rand(5, 3, 32, 32)
print(*pipe(**call, video=unit, strength=1.0, progress=False).frames.shape)
for refused in (
    lambda: video.save("out.mp4"),
    lambda: video.save("out.gif"),
    lambda: video.save("out/"),
    lambda: pipe(**call, output_type="pil", progress=False),
    lambda: pipe(**call, video="out.npy", progress=False),
    lambda: pipe(**call, video=__file__ + ".mp4", progress=False),
    lambda: pipe(**call, video=__file__ + ".gif", progress=False),
    lambda: pipe(**call, image=__file__ + ".png", progress=False),
    lambda: pipe(**call | {"prompt": "a red circle", "prompt_embeds": None}, progress=False),
):
    try:
        refused()
        print("not refused")
    except KinemaError as error:
        print(error)
"""


def test_a_video_is_made_without_the_libraries_of_files(tmp_path):
    """Neither PyAV nor pillow: frames are arrays, files are numpy's; what needs a library says which to install."""
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_PICTURES)
    for suffix in ("mp4", "gif", "png"):
        (tmp_path / f"script.py.{suffix}").touch()
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *made, mp4, gif, folder, pil, resized, read_mp4, read_gif, read_png, text = done.stdout.splitlines()
    assert made == [
        "np 1 5 32 32 3",
        "pt 1 5 3 32 32",
        "latent 1 16 2 4 4",
        "Video(1 frames of 32x32, 12 fps, 0.08 s)",
        "1 5 32 32 3",
    ]
    for said, use in ((mp4, "writing out.mp4"), (read_mp4, "reading script.py.mp4")):
        assert said.startswith(f"{use} needs the library av: pip install av ("), said
    uses = {"writing out.gif": gif, "writing out/": folder, "output_type='pil'": pil, "resizing pictures": resized}
    uses |= {"reading script.py.gif": read_gif, "reading script.py.png": read_png}
    for use, said in uses.items():
        assert said.startswith(f"{use} needs the library pillow: pip install pillow ("), said
    assert "needs the tokenizers package: pip install tokenizers" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["out.npy", "script.py", "script.py.mp4", "script.py.gif", "script.py.png"]
    )


def test_doctor_says_that_triton_is_not_there():
    code = """
import sys
sys.modules["triton"] = None
from kinema.cli.main import main
sys.exit(main(["doctor"]))
"""
    assert "\nops\n" in run(code)


CHECK = "from transformers.utils import is_kernels_available"
USES = (
    "import kernels, kinema.ops.linear; from transformers import UMT5EncoderModel; from diffusers import WanPipeline;"
    f"{CHECK}; print(kernels.__file__, is_kernels_available())"
)


def test_the_public_kernels_package_wins_in_the_root(root, tmp_path):
    """transformers and diffusers import it by that name; our folder of the same name must not come before it."""
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.18.2")
    package, metadata = tmp_path / "kernels", tmp_path / f"kernels-{version}.dist-info"
    package.mkdir()
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (package / "__init__.py").write_text(
        "from unittest.mock import MagicMock\n"
        "def use_kernel_forward_from_hub(*names): return lambda decorated: decorated\n"
        "use_kernelized_func = use_kernel_forward_from_hub\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return MagicMock(name=name)\n"
    )
    shown = run(USES, cwd=root, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert shown.split() == [str(package / "__init__.py"), "True"]


def test_our_folder_is_not_taken_for_the_public_kernels_package(root):
    try:
        from importlib.metadata import version

        version("kernels")
    except ModuleNotFoundError:
        # a folder without __init__.py has no file: a namespace, which the libraries do not take for the package
        code = f"import kernels; {CHECK}; print(kernels.__file__, is_kernels_available())"
        assert run(code, cwd=root).split() == ["None", "False"]
    else:
        pytest.skip("the public package is installed here")
