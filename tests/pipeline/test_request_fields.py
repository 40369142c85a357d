"""Every field of a request, of loading and of a call, given what it cannot be: a KinemaError, and nothing is loaded."""

import math
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import kinema
from kinema import GenerationRequest
from kinema.errors import KinemaError
from kinema.loading.options import LoadOptions
from kinema.vae.tiling import Tiling

CALL = {
    **{"prompt": "a", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24},
    **{"num_inference_steps": 2, "seed": 0},
}
LATENTS = (1, 4, 2, 4, 6)
EMBEDS = (1, 24, 24)


class Hostile:
    """What cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no")

    def __index__(self):
        raise RuntimeError("no")

    def __float__(self):
        raise RuntimeError("no")


def filled(shape, value=0.5, **options):
    return torch.full(shape, value, **options)


def latents(tensor):
    return {"latents": tensor}


def embeds(tensor):
    return {"prompt": None, "prompt_embeds": tensor}


WHOLE = {
    **{"huge": 10**400, "beyond_digits": 10**5000, "negative": -(10**30), "none_like": "", "text": "5"},
    **{
        "true": True,
        "numpy_true": np.bool_(True),
        "tensor_true": torch.tensor(True),
        "float": 5.0,
        "numpy_float": np.float64(5),
    },
    **{"complex": 5 + 0j, "list": [5], "array": np.array([5, 5]), "tensor": torch.tensor([5]), "bytes": b"5"},
    **{"nan": math.nan, "hostile": Hostile(), "decimal": Decimal(5), "meta": torch.ones((), device="meta")},
}
NUMBER = {
    **{"huge": 10**400, "nan": math.nan, "infinite": -math.inf, "overflows": 1e39, "text": "5", "true": True},
    **{"complex": 5 + 0j, "numpy_complex": np.complex64(5), "list": [5.0], "array": np.array([5.0, 5.0])},
    **{"numpy_nan": np.float32("nan"), "numpy_text": np.str_("5"), "hostile": Hostile()},
    **{"meta": torch.ones((), device="meta"), "two": torch.ones(2)},
}
TENSOR = {
    **{"list": [[1.0]], "array": "numpy", "text": "latents", "meta": {"device": "meta"}, "int": {"dtype": torch.int64}},
    **{"complex": {"dtype": torch.complex64}, "bool": {"dtype": torch.bool}, "nan": math.nan, "infinite": math.inf},
    **{"double": 1e300, "sparse": "sparse", "empty": "empty", "axes": "axes", "nested": "nested"},
}


def tensor_values(shape):
    for name, given in TENSOR.items():
        if isinstance(given, dict):
            value = torch.ones(shape, **given)
        elif isinstance(given, float):
            dtype = torch.float64 if given == 1e300 else torch.float32
            value = torch.ones(shape, dtype=dtype)
            value[..., -1, -1] = given
        elif given == "numpy":
            value = np.ones(shape, np.float32)
        elif given == "sparse":
            value = torch.ones(shape).to_sparse()
        elif given == "empty":
            value = torch.ones((0, *shape[1:]))
        elif given == "axes":
            value = torch.ones(shape)[0]
        elif given == "nested":
            value = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)], layout=torch.jagged)
        else:
            value = given
        yield name, value


REQUESTS = {
    **{
        f"{field}={name}": {field: value}
        for field in ("height", "num_frames", "num_inference_steps", "num_videos_per_prompt")
        for name, value in WHOLE.items()
    },
    **{
        f"{field}={name}": {field: value}
        for field in ("width", "max_sequence_length", "seed")
        for name, value in WHOLE.items()
        if name in ("huge", "text", "true", "float", "hostile", "array", "meta")
    },
    **{f"guidance_scale={name}": {"guidance_scale": value} for name, value in NUMBER.items()},
    **{f"guidance_scale_2={name}": {"guidance_scale_2": NUMBER[name]} for name in ("huge", "nan", "true")},
    **{f"latents={name}": latents(value) for name, value in tensor_values(LATENTS)},
    **{f"prompt_embeds={name}": embeds(value) for name, value in tensor_values(EMBEDS)},
    "negative_prompt_embeds=nan": {"negative_prompt_embeds": filled(EMBEDS, math.nan)},
    "negative_prompt_embeds=rows": {"negative_prompt_embeds": filled((2, 24, 24))},
    "image_embeds=int": {
        "image": np.zeros((8, 8, 3), np.uint8),
        "image_embeds": torch.ones(1, 5, 16, dtype=torch.int32),
    },
    "num_videos_per_prompt=None": {"num_videos_per_prompt": None},
    "num_videos_per_prompt=10**9": {"num_videos_per_prompt": 10**9},
    "output_type=None": {"output_type": None},
    "output_type=array": {"output_type": np.array(["np", "pt"])},
    "output_type=type": {"output_type": np.ndarray},
    "steps beyond the schedule": {"num_inference_steps": 1001},
    "seeds=empty": {"seed": []},
    "seeds=text": {"seed": [1, "2"], "num_videos_per_prompt": 2},
    "seeds=tuple": {"seed": (1, 2), "num_videos_per_prompt": 2},
    "seed=2**63": {"seed": 2**63},
    "generator=type": {"seed": None, "generator": torch.Generator},
    "generator=numpy": {"seed": None, "generator": np.random.default_rng(0)},
    "generators=mixed": {"seed": None, "generator": [torch.Generator(), 5], "num_videos_per_prompt": 2},
    "prompt=bytes": {"prompt": b"a"},
    "prompt=tuple": {"prompt": ("a", "b")},
    "prompt=array": {"prompt": np.array(["a", "b"])},
    "prompt=nested": {"prompt": [["a"]]},
    "prompt=letters": {"prompt": "a" * 100_001},
    "prompt=a list of letters": {"prompt": ["a", "b" * 10**6]},
    "prompt=half a pair": {"prompt": "a\ud800"},
    "prompt=many": {"prompt": ["a"] * 10**6},
    "negative_prompt=letters": {"negative_prompt": "a" * 200_000},
    "negative_prompt=half a pair": {"negative_prompt": "\udfff"},
    "negative_prompt=number": {"negative_prompt": 0},
    "strength=nan": {"video": [np.zeros((32, 48, 3), np.uint8)] * 5, "num_frames": None, "strength": math.nan},
    "strength=huge": {"video": [np.zeros((32, 48, 3), np.uint8)] * 5, "num_frames": None, "strength": 10**400},
    "tiling=tuple": {"tiling": (256, 256)},
    "tiling=type": {"tiling": Tiling},
    "callback=number": {"callback_on_step_end": 5},
    "callback=text": {"callback_on_step_end": "stop"},
    "names=number": {"callback_on_step_end_tensor_inputs": 5},
    "names=None": {"callback_on_step_end_tensor_inputs": None},
    "names=text": {"callback_on_step_end_tensor_inputs": "latents"},
    "names=numbers": {"callback_on_step_end_tensor_inputs": [1]},
    "names=unhashable": {"callback_on_step_end_tensor_inputs": [["latents"]]},
    "names=unknown": {"callback_on_step_end_tensor_inputs": ["noise"]},
    "names=unguided": {"callback_on_step_end_tensor_inputs": ["negative_prompt_embeds"], "guidance_scale": 1.0},
    "progress=text": {"progress": "yes"},
    "return_dict=None": {"return_dict": None},
}


@pytest.fixture(scope="module")
def untouched(models):
    return models.fresh("t2v")


def check_message(error):
    message = str(error)
    assert "\n" not in message and 10 < len(message) < 600, message


@pytest.mark.parametrize("given", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_with_such_a_field_is_refused_before_anything_is_loaded(untouched, given):
    with pytest.raises(KinemaError) as refused:
        untouched(**{**CALL, **given})
    check_message(refused.value)
    assert untouched.components.loaded == ()


LOADING = {
    "threads=text": {"threads": "2"},
    "threads=0": {"threads": 0},
    "threads=half": {"threads": 1.5},
    "threads=true": {"threads": True},
    "threads=more than there are": {"threads": 10**6},
    "precision=list": {"precision": []},
    "precision=None": {"precision": None},
    "precision=unknown": {"precision": "fp31"},
    "device=None": {"device": None},
    "device=number": {"device": 0},
    "device=unknown": {"device": "tpu"},
    "device=empty": {"device": ""},
    "device=meta": {"device": torch.device("meta")},
    "backend=None": {"backend": None},
    "backend=dict": {"backend": {}},
    "variant=number": {"variant": 16},
    "variant=empty": {"variant": ""},
    "keep_loaded=None": {"keep_loaded": None},
    "keep_loaded=text": {"keep_loaded": "no"},
    "cuda_graphs=1": {"cuda_graphs": 1},
    "quantize_attention=True": {"quantize_attention": True},
    "quantize_attention=unknown": {"quantize_attention": "int4"},
    "unknown": {"speed": "high"},
    "vae=None": {"vae": None},
    "scheduler=text": {"scheduler": "unipc"},
}


@pytest.mark.parametrize("given", LOADING.values(), ids=LOADING.keys())
def test_a_model_is_not_loaded_so(models, given):
    with pytest.raises(KinemaError) as refused:
        kinema.VideoPipeline.from_pretrained(models("t2v").folder, **{"device": "cpu", **given})
    check_message(refused.value)
    if set(given) <= {"precision", "device", "backend", "variant"}:  # a part alone takes the same
        with pytest.raises(KinemaError):
            kinema.load_vae(models("t2v").folder / "vae", **{"device": "cpu", **given})


TILES = {
    **{"text": ("256", 256, 192, 192), "fraction": (256, 256.5, 192, 192), "true": (True, 256, 1, 192)},
    **{"huge": (10**400, 256, 192, 192), "none": (256, None, 192, 192), "gap": (256, 256, 512, 192)},
}


@pytest.mark.parametrize("sizes", TILES.values(), ids=TILES.keys())
def test_tiles_of_such_sizes_are_refused(sizes):
    with pytest.raises(KinemaError) as refused:
        Tiling(*sizes)
    check_message(refused.value)


@pytest.mark.parametrize("wrong", ["a list", "meta", "complex"])
@pytest.mark.parametrize("name", ["hidden_states", "timestep", "encoder_hidden_states"])
def test_a_transformer_alone_refuses_what_is_no_tensor_of_numbers(untouched, name, wrong):
    given = {
        "hidden_states": torch.ones(LATENTS),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.ones(EMBEDS),
    }
    changed = {
        "a list": given[name].tolist(),
        "meta": given[name].to("meta"),
        "complex": given[name].to(torch.complex64),
    }
    with pytest.raises(KinemaError, match=name):
        untouched.transformer(**{**given, name: changed[wrong]})


ACCEPTED = {
    "numpy": {
        "num_frames": np.int64(5),
        "height": np.uint16(32),
        "guidance_scale": np.float32(2.5),
        "seed": np.uint64(7),
    },
    "0-dim arrays": {"num_frames": np.array(5), "width": torch.tensor(48), "guidance_scale": torch.tensor(2.5)},
    "fraction": {"guidance_scale": Fraction(5, 2), "num_inference_steps": np.int8(2)},
    "seeds": {"seed": [np.int64(3), 4], "num_videos_per_prompt": np.int32(2)},
    "text of numpy": {"prompt": np.str_("a red circle")},
    "half": {"prompt": None, "prompt_embeds": filled(EMBEDS, dtype=torch.bfloat16), "latents": filled(LATENTS).half()},
    "requires grad": {"latents": filled(LATENTS).requires_grad_()},
    "strided": {"latents": filled((*LATENTS[:3], 6, 4)).transpose(3, 4)},
    "narrow": {"latents": filled(LATENTS).to(torch.float8_e4m3fn)},
    "steps": {"num_inference_steps": 1000, "guidance_scale": 1.0},
}


@pytest.mark.parametrize("given", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_numbers_of_other_libraries_are_numbers(models, given):
    state = models("t2v").ours.prepare(GenerationRequest(**{**CALL, **given}))
    request = state.request
    assert {type(getattr(request, name)) for name in ("height", "width", "num_frames", "num_inference_steps")} == {int}
    assert type(request.guidance_scale) is float and state.latents.dtype == torch.float32
    assert all(type(seed) is int for seed in (request.seed if isinstance(request.seed, list) else [request.seed]))


def test_a_request_keeps_its_own_lists():
    prompts, seeds = ["a", "b"], [1, 2]
    request = GenerationRequest(prompts, seed=seeds)
    prompts.append("c")
    seeds.clear()
    assert request.prompt == ["a", "b"] and request.seed == [1, 2] and request.samples == 2


def test_every_field_has_a_check():
    from kinema.loading.options import _CHECKS as of_loading
    from kinema.request.generation import _CHECKS as of_requests

    assert set(of_requests) == {field.name for field in fields(GenerationRequest)}
    assert set(of_loading) == {field.name for field in fields(LoadOptions)}
    assert len(REQUESTS) + len(LOADING) > 150


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", "24"),
        ("fps", 0),
        ("height", 480.5),
        ("num_inference_steps", True),
        ("guidance_scale", None),
        ("width", [1]),
    ],
)
def test_defaults_that_a_model_declares_are_checked_too(name, value):
    from kinema.errors import CheckpointError
    from kinema.request.defaults import GenerationDefaults

    with pytest.raises(CheckpointError, match=f"_kinema_defaults in model_index.json: {name} is"):
        GenerationDefaults().declared_by({"_kinema_defaults": {name: value}})
