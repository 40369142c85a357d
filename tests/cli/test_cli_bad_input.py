"""Bad input: each gives one clear line, exit code 1, and no output."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

SIZE = {"--height": 32, "--width": 48, "--num-frames": 9, "--steps": 2}


def words(model, output, **changed):
    options = SIZE | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    listed = [word for option, value in options.items() for word in (option, value)]
    return ["generate", "a red circle", "-m", model, "-o", output, *listed]


@pytest.mark.parametrize(
    ("changed", "phrases"),
    [
        ({"height": 33}, ["height 33", "32 or 48"]),
        ({"width": 0}, ["width", "0"]),
        ({"width": -48}, ["width", "-48"]),
        ({"num_frames": 8}, ["num_frames 8", "5 or 9"]),
        ({"num_frames": 0}, ["num_frames"]),
        ({"steps": 0}, ["num_inference_steps"]),
        ({"num_videos": 0}, ["num_videos_per_prompt"]),
        ({"seed": -2}, ["seed", "-2"]),
        ({"strength": 1.5, "video": "x.npy"}, ["strength", "1.5"]),
        ({"max_sequence_length": 0}, ["max_sequence_length"]),
        ({"guidance_scale_2": 3}, ["guidance_scale_2", "two experts"]),
        ({"fps": 0}, ["fps", "0"]),
        ({"fps": "nan"}, ["fps", "nan"]),
        ({"device": "tpu"}, ["'tpu'"]),
        ({"backend": "metal"}, ["'metal'"]),
        ({"precision": "fp31"}, ["'fp31'", "bf16"]),
        ({"quantize_attention": "int4"}, ["'int4'", "int8"]),
        ({"quantize_attention": "fp8", "device": "cpu"}, ["'fp8'", "not in fp8", "None"]),
        ({"threads": 0}, ["threads"]),
        ({"variant": "fp16"}, ["fp16"]),
        ({"image": "nothing.png"}, ["nothing.png"]),
        ({"video": "nothing.mp4"}, ["nothing.mp4"]),
        ({"height": 160000, "width": 160000}, ["GiB"]),
    ],
)
def test_bad_request(cli, tiny, out, changed, phrases):
    cli(*words(tiny, out / "a.npy", **changed)).assert_refused(1, *phrases)
    assert os.listdir(out) == []


def large_picture(path: Path) -> None:
    Image.new("1", (10000, 10000)).save(path)


def cut_picture(path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    os.truncate(path, 60)


def odd_tiff(path: Path) -> None:
    """Of which pillow logs an error, too."""
    Image.new("RGB", (8, 8)).save(path, "tiff")
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"\x15\x01\x03\x00\x01\x00\x00\x00\x03\x00", b"\x15\x01\x03\x00\x01\x00\x00\x00\x00\x30")
    )


@pytest.mark.parametrize("option", ["image", "video"])
@pytest.mark.parametrize("name", ["in.png", "in.gif", "in.mp4", "in.npy", "in.tiff"])
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        Path.touch,
        Path.mkdir,
        large_picture,
        cut_picture,
        odd_tiff,
        lambda path: path.symlink_to("/dev/zero"),
    ],
)
def test_bad_media(cli, tiny, tmp_path, out, make, name, option):
    """Whatever it is and is called, it is one line, at once."""
    if make in (large_picture, cut_picture, odd_tiff) and name not in ("in.png", "in.tiff"):
        pytest.skip("a picture")
    make(tmp_path / name)
    cli(*words(tiny, out / "a.npy", **{option: tmp_path / name})).assert_refused(1, f"cannot read {option}", name)
    assert os.listdir(out) == []


def rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def missing_tensor(model):
    rewrite(weights(model / "transformer"), lambda t: t.pop("blocks.1.attn1.to_q.weight"))
    return ["transformer", "missing blocks.1.attn1.to_q.weight (32, 32)"]


def surplus_tensor(model):
    rewrite(weights(model / "transformer"), lambda t: t.update(extra=torch.ones(3)))
    return ["surplus extra (3,)"]


def wrong_shape(model):
    rewrite(weights(model / "vae"), lambda t: t.update({"post_quant_conv.bias": torch.ones(5)}))
    return ["vae", "post_quant_conv.bias", "got (5,), wanted (4,)"]


def truncated(model):
    file = weights(model / "text_encoder")
    os.truncate(file, file.stat().st_size - 100)
    return [file.name, "truncated"]


def truncated_header(model):
    os.truncate(weights(model / "text_encoder"), 20)
    return [weights(model / "text_encoder").name]


def empty_file(model):
    os.truncate(weights(model / "transformer"), 0)
    return [weights(model / "transformer").name]


def index_to(target):
    def spoil(model):
        file = weights(model / "transformer")
        outside = model / "outside.safetensors"
        names = list(load_file(file))
        file.rename(outside)
        where = target.format(outside=outside)
        index = {"weight_map": dict.fromkeys(names, where)}
        (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        return ["index.json", "outside"]

    return spoil


def index_without_its_shard(model):
    file = weights(model / "transformer")
    index = {"weight_map": dict.fromkeys(load_file(file), "diffusion_pytorch_model-00001-of-00001.safetensors")}
    file.unlink()
    (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return ["diffusion_pytorch_model-00001-of-00001.safetensors"]


def pickle_only(model):
    file = weights(model / "transformer")
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    return ["diffusion_pytorch_model.bin", "safetensors"]


def no_weights(model):
    weights(model / "vae").unlink()
    return ["vae"]


def broken_json(model):
    (model / "transformer" / "config.json").write_text('{"num_layers": ')
    return ["transformer/config.json"]


def foreign_class(model):
    index = json.loads((model / "model_index.json").read_text())
    index["transformer"] = ["os", "system"]
    (model / "model_index.json").write_text(json.dumps(index))
    return ["os.system", "wanted"]


def unknown_option(model):
    config = json.loads((model / "transformer" / "config.json").read_text())
    (model / "transformer" / "config.json").write_text(json.dumps(config | {"new_trick": True}))
    return ["new_trick"]


def no_index(model):
    (model / "model_index.json").unlink()
    return ["model_index.json"]


SPOILED = {
    "missing tensor": missing_tensor,
    "surplus tensor": surplus_tensor,
    "wrong shape": wrong_shape,
    "truncated": truncated,
    "truncated header": truncated_header,
    "empty file": empty_file,
    "index to the parent": index_to("../outside.safetensors"),
    "index to an absolute path": index_to("{outside}"),
    "index without its shard": index_without_its_shard,
    "pickle only": pickle_only,
    "no weights": no_weights,
    "broken json": broken_json,
    "foreign class": foreign_class,
    "unknown option": unknown_option,
    "no index": no_index,
}


@pytest.mark.parametrize("name", SPOILED)
def test_bad_model(cli, damaged, out, name):
    phrases = SPOILED[name](damaged)
    cli(*words(damaged, out / "a.npy")).assert_refused(1, *phrases)
    assert os.listdir(out) == []


def test_an_unspoiled_copy_works(cli, damaged, out):
    result = cli(*words(damaged, out / "a.npy"))
    assert result.code == 0, result.err


def test_no_such_model(cli, out):
    cli(*words("no/such/model", out / "a.npy")).assert_refused(1, "no/such/model")
    cli("inspect", "no/such/model").assert_refused(1, "no/such/model")
    cli("bench", "generate", "-m", "no/such/model").assert_refused(1, "no/such/model")


def a_file(out):
    (out / "file").write_text("mine")
    return f"{out}/file/a.mp4", ["not a folder"]


def missing_folder(out):
    return f"{out}/none/a.mp4", ["none", "does not exist"]


def a_folder(out):
    (out / "a.mp4").mkdir()
    return f"{out}/a.mp4", ["it is a folder"]


def a_full_folder(out):
    (out / "frames").mkdir()
    (out / "frames" / "thesis.txt").write_text("mine")
    return f"{out}/frames/", ["thesis.txt"]


def a_device(out):
    os.mkfifo(out / "a.mp4")
    return f"{out}/a.mp4", ["not a regular file"]


def a_place_where_not_even_root_writes(out):
    if not os.path.isdir("/proc/1"):
        pytest.skip("has no /proc")
    return "/proc/a.mp4", ["No such file or directory"]


def unknown_suffix(out):
    return f"{out}/a.docx", ["'.docx'"]


def several_frames_in_a_picture(out):
    return f"{out}/a.png", ["one frame, got 9"]


UNWRITABLE = [
    a_file,
    missing_folder,
    a_folder,
    a_full_folder,
    a_device,
    a_place_where_not_even_root_writes,
    unknown_suffix,
    several_frames_in_a_picture,
]


def contents(folder: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(folder)): path.read_text() if stat.S_ISREG(path.stat().st_mode) else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("case", UNWRITABLE)
def test_unwritable_output_is_refused_before_anything_is_computed(cli, tiny, out, monkeypatch, case):
    from kinema.pipeline import VideoPipeline

    def prepare(pipe, request):
        raise AssertionError("computes")

    monkeypatch.setattr(VideoPipeline, "prepare", prepare)
    path, phrases = case(out)
    before = contents(out)
    cli(*words(tiny, path)).assert_refused(1, path, *phrases)
    assert contents(out) == before


def test_unwritable_output_is_refused_before_torch_is_imported(process, tiny, out):
    before = "import atexit\natexit.register(lambda: print('torch' in sys.modules))"
    running = process(*words(tiny, out / "none" / "a.mp4"), before=before)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 1 and "does not exist" in stderr
    assert stdout == "False\n"


@pytest.mark.parametrize(
    ("target", "phrase"), [("", "it is a folder"), ("none/b.json", "No such file"), ("file/b.json", "Not a directory")]
)
def test_bench_refuses_a_report_that_it_cannot_write_before_it_measures(cli, out, target, phrase):
    (out / "file").touch()
    model = "no/such/model"  # would be noticed next
    cli("bench", "generate", "-m", model, "--json", f"{out}/{target}").assert_refused(1, f"{out}/{target}", phrase)


@pytest.mark.parametrize("option", [("--rounds", 0), ("--warmup", -1)])
def test_bench_refuses_no_rounds(cli, tiny, option):
    cli("bench", "generate", "-m", tiny, *option).assert_refused(1, "wanted at least 1 and 0")


def test_a_message_of_several_lines_becomes_one(cli, monkeypatch):
    from kinema.errors import RequestError

    def plan_ops(*asked):
        raise RequestError("first\n  second")

    monkeypatch.setattr("kinema.ops.plan_ops", plan_ops)
    assert cli("doctor") == (1, "", "kinema: error: first second\n")
