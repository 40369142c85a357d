"""The sample model's tokenizer: one token a word, in the files that transformers and tokenizers load.

The ids are laid out like T5's: 0 is padding, 1 ends a text, 2 is an unknown word, the rest is the grammar's
vocabulary in its order. Case and punctuation are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from kinema.sample.captions import VOCABULARY

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, END, UNKNOWN)  # ids 0, 1, 2
VOCABULARY_SIZE = len(SPECIAL_TOKENS) + len(VOCABULARY)
MAX_TOKENS = 32  # the longest caption has 19 words and the end token


def make_tokenizer(words: Iterable[str] = VOCABULARY) -> Tokenizer:
    """The tokenizer of these words in memory; `encode(text).ids` ends with END and is neither padded nor cut."""
    ids = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    # The same words as captions.words: runs of letters and numbers, in lower case.
    tokenizer.normalizer = Sequence([Lowercase(), Replace(Regex(r"[^\p{L}\p{N}]+"), " ")])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, ids[END])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def build_tokenizer(folder: str | Path, words: Iterable[str] = VOCABULARY, max_tokens: int = MAX_TOKENS) -> Path:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; returns the folder.

    The folder is made if need be, and files of these names in it are replaced. `AutoTokenizer.from_pretrained`
    and `Tokenizer.from_file` give the same ids from it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(words).save(str(folder / "tokenizer.json"))
    names = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    config = {
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in enumerate(SPECIAL_TOKENS)
        },
        "clean_up_tokenization_spaces": False,
        **names,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_tokens,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    return folder
