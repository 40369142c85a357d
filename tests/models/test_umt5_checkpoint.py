"""UMT5 configs and folders: what is accepted, what is refused, and where the token embedding lies."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import UMT5Config as TheirConfig
from transformers import UMT5EncoderModel, UMT5ForConditionalGeneration

from kinema.checkpoints import load_weights
from kinema.checkpoints.component_files import ComponentFiles
from kinema.checkpoints.weights import Weights
from kinema.encoders import umt5
from kinema.encoders.umt5 import OWN_EMBEDDING, SHARED_EMBEDDING, UMT5Config, UMT5Encoder, tensor_shapes
from kinema.errors import CheckpointError, RequestError
from kinema.ops import build_ops, plan_ops, target_for

OPS = build_ops(plan_ops(target_for("cpu")))
SMALL = {"vocab_size": 50, "d_model": 24, "d_kv": 10, "d_ff": 40, "num_layers": 2, "num_heads": 3}

# text_encoder/config.json of Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
PUBLISHED = {
    "_name_or_path": "google/umt5-xxl",
    "architectures": ["UMT5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "umt5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "scalable_attention": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "torch_dtype": "float32",
    "transformers_version": "4.48.0.dev0",
    "use_cache": True,
    "vocab_size": 256384,
}


def test_published_config():
    config = UMT5Config.from_dict(PUBLISHED)
    assert config == UMT5Config(256384, 4096, 64, 10240, 24, 64, 32, 128, 1e-6, "gated-gelu")
    assert UMT5Config.from_dict(TheirConfig(**SMALL).to_dict()) == UMT5Config(**SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh', wanted 'gated-gelu' or"),
        ({"dense_act_fn": "relu"}, "contradicts"),
        ({"is_gated_act": False}, "contradicts"),
        ({"model_type": "t5"}, "model_type='t5'"),  # T5 shares one bias table among its layers
        ({"is_decoder": True}, "is_decoder=True"),
        ({"relative_attention_num_buckets": 3}, "buckets is 3, wanted a whole number of 4 to 10000"),
        ({"relative_attention_max_distance": 8}, "above a quarter"),
        ({"rope_theta": 1e4}, "does not know rope_theta"),
    ],
)
def test_configs_that_would_change_results_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        UMT5Config.from_dict({**PUBLISHED, **change})


@pytest.mark.parametrize("projection", ["gated-gelu", "gated-silu", "relu"])
def test_tensor_shapes_are_the_checkpoints(projection, tmp_path):
    config = {**SMALL, "feed_forward_proj": projection}
    UMT5EncoderModel(TheirConfig(**config)).save_pretrained(tmp_path)
    found = ComponentFiles(tmp_path).shapes()
    assert tensor_shapes(UMT5Config(**config), found) == found


def folder_with(tmp_path, model, names):
    """A component folder that holds the token embedding under `names`; another table stands behind `shared` if both."""
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k not in (SHARED_EMBEDDING, OWN_EMBEDDING)}
    for name in names:
        tensors[name] = model.state_dict()[SHARED_EMBEDDING].clone()
    if len(names) == 2:
        tensors[SHARED_EMBEDDING] = tensors[SHARED_EMBEDDING] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("names", [(SHARED_EMBEDDING,), (OWN_EMBEDDING,), (SHARED_EMBEDDING, OWN_EMBEDDING)])
def test_the_embedding_under_either_name(names, tmp_path):
    torch.manual_seed(0)
    folder = folder_with(tmp_path, UMT5EncoderModel(TheirConfig(**SMALL)), names)
    theirs = UMT5EncoderModel.from_pretrained(folder).eval()
    files = ComponentFiles(folder)
    config = UMT5Config.from_dict(theirs.config.to_dict())
    ours = UMT5Encoder(config, load_weights(files, tensor_shapes(config, files)), OPS)
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        wanted = theirs(ids).last_hidden_state
        assert (ours(ids) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_an_embedding_that_is_nowhere_is_named(tmp_path):
    files = ComponentFiles(folder_with(tmp_path, UMT5EncoderModel(TheirConfig(**SMALL)), ()))
    with pytest.raises(CheckpointError, match=r"missing shared\.weight \(50, 24\)"):
        load_weights(files, tensor_shapes(UMT5Config(**SMALL), files))


def test_a_whole_sequence_to_sequence_folder_serves(tmp_path):
    UMT5ForConditionalGeneration(TheirConfig(**SMALL)).save_pretrained(tmp_path)
    files = ComponentFiles(tmp_path)
    assert any(name.startswith("decoder.") for name in files)
    load_weights(files, tensor_shapes(UMT5Config(**SMALL), files), ignored=umt5.IGNORED_TENSORS)


class Embedded(dict):
    """A state whose embedding cannot be copied as a whole, and says which rows of it were asked for."""

    def __init__(self, state):
        super().__init__(state)
        self.asked = []

    def __getitem__(self, name):
        assert name not in (SHARED_EMBEDDING, OWN_EMBEDDING), "copied"
        return super().__getitem__(name)

    def table(self, name):
        asked, whole = self.asked, super().__getitem__(name)

        class Table:
            shape = whole.shape

            def rows(self, ids):
                asked.append(ids.tolist())
                return whole[ids]

        return Table()


def test_the_embedding_stays_in_its_file():
    """Its rows are looked up through `table`; nothing copies the whole of it."""
    state = UMT5EncoderModel(TheirConfig(**SMALL)).state_dict()
    files = Embedded(state)
    ours = UMT5Encoder(UMT5Config(**SMALL), Weights(files), OPS)
    with torch.no_grad():
        got = ours(torch.tensor([[3, 4]]))
        assert torch.equal(got, UMT5Encoder(UMT5Config(**SMALL), Weights(state), OPS)(torch.tensor([[3, 4]])))
    assert files.asked == [[[3, 4]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_embedding_is_read_from_files_as_it_is_in_memory(tmp_path, dtype):
    state = {
        name: value.clone().to(dtype) for name, value in UMT5EncoderModel(TheirConfig(**SMALL)).state_dict().items()
    }
    del state[OWN_EMBEDDING]
    save_file(state, tmp_path / "model.safetensors")
    config = UMT5Config(**SMALL)
    ids = torch.tensor([[3, 49, 3, 0], [7, 1, 0, 0]])
    files = ComponentFiles(tmp_path)
    with torch.no_grad():
        stored = UMT5Encoder(config, load_weights(files, tensor_shapes(config, files)), OPS)(ids)
        wide = {name: value.float() for name, value in state.items()}
        assert torch.equal(stored, UMT5Encoder(config, Weights(wide), OPS)(ids))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 50]], None, "ids run from 1 to 50, this text encoder knows 0 to 49"),
        ([[1, -1]], None, "ids run from -1 to 1"),
        ([[1, 2]], [[1, 1, 0]], "they must agree"),
        ([1, 2], None, r"wanted \[B, S\]"),
        ([[]], None, r"wanted \[B, S\]"),
    ],
)
def test_bad_inputs_are_refused(ids, mask, message):
    ours = UMT5Encoder(UMT5Config(**SMALL), Weights(UMT5EncoderModel(TheirConfig(**SMALL)).state_dict()), OPS)
    with pytest.raises(RequestError, match=message):
        ours(torch.tensor(ids, dtype=torch.long), torch.tensor(mask) if mask is not None else None)
