"""Prompts to embeddings: clean, tokenize, encode, and pad with zeros."""

from __future__ import annotations

from difflib import get_close_matches

import torch

from kinema.errors import listed, warn
from kinema.families.base import Parts
from kinema.request.generation import GenerationRequest
from kinema.text.clean import clean_prompt
from kinema.text.tokenizer import Tokenizer


def encode_prompts(parts: Parts, request: GenerationRequest) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(prompt, negative prompt) as [B, L, C] in fp32, a row per sample; without guidance there is no negative.

    Texts are encoded to max_sequence_length, zero after their last token. Given embeddings keep their length, as
    in diffusers: a model may attend to the padding too.
    """
    guided = request.guided
    prompts, negatives = request.prompt_embeds, request.negative_prompt_embeds
    texts = _listed(request.prompt, 1) if prompts is None else []
    negative_texts = _listed(request.negative_prompt or "", request.prompts) if guided and negatives is None else []
    if texts or negative_texts:
        assert request.max_sequence_length is not None
        encoded = encode_texts(parts, [*texts, *negative_texts], request.max_sequence_length)
        prompts = encoded[: len(texts)] if texts else prompts
        negatives = encoded[len(texts) :] if negative_texts else negatives
    assert prompts is not None
    copies, device = request.num_videos_per_prompt, parts.ops.device

    def rows(embeds: torch.Tensor) -> torch.Tensor:
        return embeds.to(device, torch.float32).repeat_interleave(copies, dim=0)

    return rows(prompts), rows(negatives) if guided and negatives is not None else None


def encode_texts(parts: Parts, texts: list[str], max_length: int) -> torch.Tensor:
    """[len(texts), max_length, C] fp32, zero after each text's last token.

    The encoder runs once over the distinct texts, and only as far as the longest: padding is masked, so what
    lies beyond it changes nothing.
    """
    distinct = list(dict.fromkeys(clean_prompt(text) for text in texts))
    with parts.using("tokenizer") as tokenizer:
        _warn_of_what_is_not_read(tokenizer, distinct, max_length)
        ids, mask = tokenizer(distinct, max_length)
    longest = int(mask.sum(dim=1).amax())
    with parts.using("text_encoder") as encoder:
        hidden: torch.Tensor = encoder(ids[:, :longest], mask[:, :longest]).float()
    embeds = hidden.new_zeros(len(distinct), max_length, hidden.shape[2])
    embeds[:, :longest] = hidden * mask[:, :longest, None].to(hidden.device)
    return embeds[[distinct.index(clean_prompt(text)) for text in texts]]


def _warn_of_what_is_not_read(tokenizer: Tokenizer, texts: list[str], most: int) -> None:
    tokens = max(tokenizer.lengths(texts))
    if tokens > most:
        warn(f"a text has {tokens} tokens, and {most} are read (max_sequence_length): its end is cut off", stacklevel=2)
    unknown = list(dict.fromkeys(word for text in texts for word in tokenizer.unknown_words(text)))
    if not unknown:
        return
    known = tokenizer.words()
    near = dict.fromkeys(close for word in unknown for close in get_close_matches(word.lower(), known, n=2))
    among = f"; it knows {len(known)} words: {listed((*near, *known), most=30)}" if known else ""
    warn(f"this model does not know {listed(unknown, most=10)}{among}", stacklevel=2)


def _listed(text: str | list[str] | None, count: int) -> list[str]:
    assert text is not None
    return [text] * count if isinstance(text, str) else text
