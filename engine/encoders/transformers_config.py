"""What any transformers config.json may hold without changing what an encoder computes."""

from __future__ import annotations

HOUSEKEEPING_KEYS = frozenset(
    {
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",  # a memory saver: same result
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
