"""The UMT5 encoder against transformers, on the same weights, and a table of mistakes that must be noticed."""

import dataclasses
import math

import pytest
import torch
from transformers import UMT5Config as TheirConfig
from transformers import UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from kinema.checkpoints.weights import Weights
from kinema.encoders import umt5
from kinema.encoders.umt5 import UMT5Config, UMT5Encoder, offset_buckets
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.common import Precision, Target

OPS = build_ops(plan_ops(target_for("cpu"), "reference"))  # weights that can be changed, and gradients
TOLERANCE = 1e-5  # the contract is 1e-4; a tighter bound notices smaller mistakes

ODD = {
    "vocab_size": 101,
    "d_model": 48,
    "d_kv": 20,
    "d_ff": 72,
    "num_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
CONFIGS = {
    "odd": ODD,
    "published_buckets": {
        **ODD,
        "d_model": 64,
        "d_kv": 16,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
    "narrow_heads": {**ODD, "d_model": 40, "d_kv": 6, "num_heads": 5, "num_layers": 1},
    "odd_buckets": {**ODD, "relative_attention_num_buckets": 9, "relative_attention_max_distance": 21},
    "silu": {**ODD, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-5},
    "relu": {**ODD, "feed_forward_proj": "relu"},
}


def rescaled_model(config: dict) -> UMT5EncoderModel:
    """A transformers model whose every sub-layer matters (plain initialisation hides mistakes)."""
    torch.manual_seed(0)
    model = UMT5EncoderModel(TheirConfig(**config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in name or "shared" in name:
                p.normal_(0, 1)
            elif ".q." in name:  # logits are not divided by the root of the head's width
                p.normal_(0, 1.2 / math.sqrt(p.shape[1] * config["d_kv"]))
            else:
                strong = 2.0 if ".o." in name or ".wo." in name else 1.2
                p.normal_(0, strong / math.sqrt(p.shape[1]))
    return model


def ours_from(model: UMT5EncoderModel, config: dict, ops=OPS, **changes: object) -> UMT5Encoder:
    return UMT5Encoder(UMT5Config(**{**config, **changes}), Weights(model.state_dict()), ops)


def case_inputs(config: dict, batch: int, length: int, padding: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    ids = torch.randint(0, config["vocab_size"], (batch, length), generator=generator)
    if padding == "none":
        return ids, None
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = max(length // 3, 1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    if padding == "left":
        mask = mask.flip(1)
    elif padding == "gaps":
        mask[:, 1::3] = 0
    elif padding == "full":
        mask = torch.ones_like(mask)
    return ids, mask


@torch.no_grad()
def reference_output(model, ids, mask):
    return model(ids, mask).last_hidden_state


@torch.no_grad()
def our_output(model, ids, mask):
    return model(ids, mask)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


CASES = [
    ("odd", 1, 1, "none"),
    ("odd", 1, 1, "full"),
    ("odd", 3, 2, "right"),
    ("odd", 2, 7, "left"),
    ("odd", 3, 33, "right"),
    ("odd", 3, 40, "gaps"),
    ("odd", 2, 130, "none"),
    ("published_buckets", 2, 512, "right"),
    ("published_buckets", 1, 512, "none"),
    ("published_buckets", 2, 300, "left"),
    ("published_buckets", 3, 77, "full"),
    ("narrow_heads", 3, 61, "right"),
    ("odd_buckets", 2, 90, "right"),
    ("silu", 2, 19, "left"),
    ("relu", 2, 19, "right"),
]


@pytest.mark.parametrize(("name", "batch", "length", "padding"), CASES)
def test_forward_equals_transformers(name, batch, length, padding):
    """Every row, padding too: padded tokens attend to the real ones there as here."""
    config = CONFIGS[name]
    model = rescaled_model(config)
    ids, mask = case_inputs(config, batch, length, padding)
    got, wanted = our_output(ours_from(model, config), ids, mask), reference_output(model, ids, mask)
    assert relative_error(got, wanted) <= TOLERANCE
    if mask is not None:
        assert relative_error(got[mask.bool()], wanted[mask.bool()]) <= TOLERANCE


@pytest.mark.parametrize("block", range(ODD["num_layers"]))
def test_each_block_equals_transformers(block):
    model = rescaled_model(ODD)
    ours = ours_from(model, ODD)
    ids, mask = case_inputs(ODD, 2, 30, "right")
    seen = {}
    handle = model.encoder.block[block].register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    reference_output(model, ids, mask)
    handle.remove()
    with torch.no_grad():
        got = ours.blocks[block](seen["x"], ours._attention_inputs(ids, mask))
    assert relative_error(got, seen["out"]) <= TOLERANCE


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_does_not_change_a_prompt(padding):
    ours = ours_from(rescaled_model(ODD), ODD)
    ids, mask = case_inputs(ODD, 3, 33, padding)
    padded = our_output(ours, ids, mask)
    for row in range(3):
        real = mask[row].bool()
        alone = our_output(ours, ids[row : row + 1, real], None)
        assert relative_error(padded[row : row + 1, real], alone) <= TOLERANCE


@pytest.mark.parametrize(
    ("buckets", "distance"), [(32, 128), (8, 16), (9, 21), (4, 2), (16, 128), (64, 300), (6, 50), (32, 1000)]
)
def test_buckets_are_those_of_transformers(buckets, distance):
    theirs = UMT5Attention(
        TheirConfig(relative_attention_num_buckets=buckets, relative_attention_max_distance=distance, d_model=8), True
    )
    for length in [1, 2, 3, 8, 9, 17, 64, 127, 128, 129, 255, 512]:
        offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        wanted = theirs._relative_position_bucket(offset)
        assert torch.equal(offset_buckets(length, buckets, distance)[offset + length - 1], wanted)


def swapped_gate(state: dict) -> dict:
    rename = {"wi_0": "wi_1", "wi_1": "wi_0"}
    return {".".join(rename.get(part, part) for part in name.split(".")): t for name, t in state.items()}


def swapped_qk(state: dict) -> dict:
    rename = {"q": "k", "k": "q"}
    return {".".join(rename.get(part, part) for part in name.split(".")): t for name, t in state.items()}


def plant(ours: UMT5Encoder, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a mistake in an encoder of ours."""

    def replace(**functions):
        ours.ops = dataclasses.replace(OPS, **functions)
        for block in ours.blocks:
            block.ops = ours.ops

    def rebucket(change):
        monkeypatch.setattr(umt5, "offset_buckets", lambda n, b, d, _: change(offset_buckets(n, b, d), n, b, d))

    if mistake == "scaled_attention":
        replace(attention=lambda q, kv, scale=None, **kw: OPS.attention(q, kv, **kw))
    elif mistake == "erf_gelu":
        for block in ours.blocks:
            block.feed_forward = dataclasses.replace(block.feed_forward, activation="gelu")
    elif mistake == "bias_of_layer_0":
        for block in ours.blocks:
            block.position = ours.blocks[0].position
    elif mistake == "unidirectional_buckets":

        def decoder_buckets(_, length, buckets, distance):
            left = offset_buckets(length, 2 * buckets, distance)
            return torch.where(torch.arange(1 - length, length) > 0, 0, left)

        rebucket(decoder_buckets)
    elif mistake == "reversed_offsets":
        rebucket(lambda found, *_: found.flip(0))
    elif mistake == "max_distance":
        rebucket(lambda _, length, buckets, distance: offset_buckets(length, buckets, 2 * distance))
    elif mistake == "no_position_bias":
        replace(attention=lambda q, kv, bias=None, **kw: OPS.attention(q, kv, **kw))
    elif mistake == "no_residual":
        replace(linear=lambda x, weight, residual=None, **kw: OPS.linear(x, weight, **kw))
    elif mistake == "layer_norm":
        replace(norm_modulate=lambda x, norm="rms", **kw: OPS.norm_modulate(x, norm="layer", **kw))
    elif mistake == "no_final_norm_weight":
        ours.final_norm = torch.ones_like(ours.final_norm)
    elif mistake == "lengths_off_by_one":

        def one_more(q, kv, **kw):
            return OPS.attention(q, dataclasses.replace(kv, lengths=kv.lengths + 1), **kw)

        replace(attention=one_more)
    else:
        raise AssertionError(mistake)


@pytest.mark.parametrize(
    "mistake",
    [
        "scaled_attention",
        "erf_gelu",
        "bias_of_layer_0",
        "unidirectional_buckets",
        "reversed_offsets",
        "max_distance",
        "no_position_bias",
        "no_residual",
        "layer_norm",
        "no_final_norm_weight",
        "lengths_off_by_one",
    ],
)
def test_planted_mistakes_are_noticed(mistake, monkeypatch):
    model = rescaled_model(ODD)
    ours = ours_from(model, ODD)
    ids, mask = case_inputs(ODD, 3, 40, "right")
    wanted = reference_output(model, ids, mask)
    plant(ours, mistake, monkeypatch)
    assert relative_error(our_output(ours, ids, mask), wanted) > 1e-4


@pytest.mark.parametrize("swap", [swapped_gate, swapped_qk])
def test_swapped_weights_are_noticed(swap):
    model = rescaled_model(ODD)
    ids, mask = case_inputs(ODD, 3, 40, "right")
    swapped = UMT5Encoder(UMT5Config(**ODD), Weights(swap(model.state_dict())), OPS)
    assert relative_error(our_output(swapped, ids, mask), reference_output(model, ids, mask)) > 1e-4


@pytest.mark.parametrize("padding", ["right", "left"])
def test_an_ignored_mask_is_noticed(padding):
    model = rescaled_model(ODD)
    ids, mask = case_inputs(ODD, 3, 40, padding)
    real = mask.bool()
    got, wanted = our_output(ours_from(model, ODD), ids, None), reference_output(model, ids, mask)
    assert relative_error(got[real], wanted[real]) > 1e-4


def test_eps_of_1e_5_is_noticed():
    model = rescaled_model(ODD)
    with torch.no_grad():
        model.shared.weight *= 0.01  # tokens of small variance make an epsilon visible
    ids, mask = case_inputs(ODD, 2, 20, "right")
    wanted = reference_output(model, ids, mask)
    assert relative_error(our_output(ours_from(model, ODD), ids, mask), wanted) <= TOLERANCE
    wrong = ours_from(model, ODD, layer_norm_epsilon=1e-5)
    assert relative_error(our_output(wrong, ids, mask), wanted) > 1e-4


@pytest.mark.parametrize("part", ["attention", "ffn", "position"])
def test_every_sublayer_matters(part):
    """Dropping a sub-layer changes the output by a fifth or more: otherwise parity proves nothing."""
    model = rescaled_model(ODD)
    ours = ours_from(model, ODD)
    ids, mask = case_inputs(ODD, 2, 40, "right")
    for block in ours.blocks:
        if part == "position":
            block.position = torch.zeros_like(block.position)
        else:
            (block.out if part == "attention" else block.down).weight.zero_()
    wanted = our_output(ours_from(rescaled_model(ODD), ODD), ids, mask)
    got = our_output(ours, ids, mask)
    assert float((got - wanted).norm() / wanted.norm()) >= 0.2


def low_precision_ops(dtype: torch.dtype):
    """The reference with narrow numbers between ops, as a GPU has them."""
    return build_ops(plan_ops(Target(torch.device("cpu"), Precision(str(dtype), dtype, dtype))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_as_good_as_transformers(dtype, tmp_path):
    model = rescaled_model(ODD)
    ids, mask = case_inputs(ODD, 3, 40, "right")
    truth = reference_output(model.double(), ids, mask)
    rescaled_model(ODD).save_pretrained(tmp_path)
    theirs = UMT5EncoderModel.from_pretrained(tmp_path, dtype=dtype)
    got = our_output(ours_from(rescaled_model(ODD), ODD, low_precision_ops(dtype)), ids, mask)
    assert got.dtype == dtype
    their_error = (reference_output(theirs, ids, mask).double() - truth).abs().max()
    assert (got.double() - truth).abs().max() <= 2 * their_error


def test_fp16_survives_sums_beyond_its_range():
    model = rescaled_model(ODD)
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight *= 3e4
    ids, mask = case_inputs(ODD, 2, 20, "right")
    wanted = reference_output(model, ids, mask)
    assert float(model.encoder.block[0].layer[1].DenseReluDense.wo.weight.detach().abs().max()) < 65504
    got = our_output(ours_from(model, ODD, low_precision_ops(torch.float16)), ids, mask)
    assert relative_error(got.float(), wanted) < 0.02


def test_gradients_equal_transformers():
    model = rescaled_model(ODD)
    ids, mask = case_inputs(ODD, 2, 25, "right")
    parameters = {name: t.detach().clone().requires_grad_() for name, t in model.state_dict().items()}
    del parameters["encoder.embed_tokens.weight"]  # tied
    weight = torch.randn(2, 25, ODD["d_model"], generator=torch.Generator().manual_seed(1))
    (model(ids, mask).last_hidden_state * weight).sum().backward()
    (UMT5Encoder(UMT5Config(**ODD), Weights(parameters), OPS)(ids, mask) * weight).sum().backward()
    for name, p in model.named_parameters():
        assert relative_error(parameters[name].grad, p.grad) <= 1e-4, name


def test_training_after_inference_of_the_same_length():
    """What an inference-mode forward leaves in the cache must serve a training one."""
    offset_buckets.cache_clear()
    model = rescaled_model(ODD)
    ids, mask = case_inputs(ODD, 2, 23, "right")
    parameters = {name: t.detach().clone().requires_grad_() for name, t in model.state_dict().items()}
    ours = UMT5Encoder(UMT5Config(**ODD), Weights(parameters), OPS)
    with torch.inference_mode():
        ours(ids, mask)
    ours(ids, mask).sum().backward()
    assert parameters["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].grad.abs().sum() > 0
