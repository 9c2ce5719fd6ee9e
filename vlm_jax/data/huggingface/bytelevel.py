"""Byte-level BPE from the two files of GPT-2, vocab.json and merges.txt, of which each family splits words its own way.

Sources: GPT-2's encoder.py and Qwen's tokenization note for the expressions; CLIP's are in `data.clip`.
"""

from __future__ import annotations

from typing import Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlm_jax.data.clip import bpe as clip

GPT2, QWEN, CLIP = "gpt2", "qwen", "clip"
# Digits one by one, line ends apart from blanks, a word with the one sign in front of it.
_QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")


def family(vocabulary: Mapping[str, int], tokenizer_class: str, model_type: str) -> str:
    """Whose words these are: told by the vocabulary, the tokenizer's class or the model's type; GPT-2's otherwise."""
    if clip.BEGIN in vocabulary:
        return CLIP
    return QWEN if (tokenizer_class or model_type).lower().startswith("qwen") else GPT2


def build(kind: str, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]],
          blank: bool = False) -> Tokenizer:
    """The tokenizer of a vocabulary; it adds no begin and end of its own. blank: whether a text gets one in front."""
    if kind == CLIP:
        return clip.build(vocabulary, merges)
    backend = Tokenizer(models.BPE(dict(vocabulary), list(merges)))
    words = pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=kind == GPT2)
    if kind == QWEN:
        backend.normalizer = normalizers.NFC()
        words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated"), words])
    backend.pre_tokenizer, backend.decoder = words, decoders.ByteLevel()
    return backend


def ends(kind: str) -> dict[str, str]:
    """Special tokens where the files name none."""
    if kind == CLIP:
        return {"bos_token": clip.BEGIN, "eos_token": clip.END, "pad_token": clip.END}
    return {"eos_token": clip.END} | ({"pad_token": clip.END} if kind == QWEN else {"bos_token": clip.END})
