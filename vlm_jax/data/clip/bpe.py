"""CLIP's tokenizer: a byte-level BPE of lower-cased words whose last piece carries `</w>` (arXiv 2103.00020).

`merges.txt` beside this file holds the 48,894 merges that OpenAI's code uses of its `bpe_simple_vocab_16e6.txt`
(MIT, see LICENSE); the ids follow from them.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Mapping, Sequence

from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_MERGES = epath.Path(__file__).parent / "merges.txt"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_STRAIGHT = str.maketrans("\u2018\u2019\u201a\u201b\u02bc\u201c\u201d\u201e\u201f", "'''''\"\"\"\"")
_UNSEEN = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]")
_WIDE = re.compile("[\u3000\uff01-\uffef\ufb00-\ufb06]")  # letters of another width, and ligatures


def openai() -> Tokenizer:
    """OpenAI's 49,408 ids: 256 bytes, the same at the end of a word, a merge each, begin 49406 and end 49407."""
    merges = [tuple(line.split()) for line in _MERGES.read_text().splitlines()]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges), BEGIN, END]
    return build({word: i for i, word in enumerate(words)}, merges)


def build(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """The tokenizer of a vocabulary; it adds no begin and end of its own."""
    backend = Tokenizer(models.BPE(
        dict(vocabulary), list(merges), unk_token=END, continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    backend.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoder()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in (BEGIN, END)])
    return backend


def decoder() -> decoders.Decoder:
    """Words with blanks between them: where the text had none, as in "it's", is lost."""
    return decoders.Sequence([
        decoders.ByteLevel(), decoders.Replace(Regex(f"{WORD_END}$"), ""), decoders.Replace(WORD_END, " ")])


def clean(text: str) -> str:
    """What OpenAI's code does to a text before its words are looked up: HTML entities are resolved twice; quotes are
    straightened, ligatures and wide letters folded, control characters dropped and letters composed, as ftfy does to
    text that is not damaged (its repair of wrongly decoded text is not made); then lower case, by Python's rules."""
    text = html.unescape(html.unescape(text))
    text = _UNSEEN.sub("", text).translate(_STRAIGHT)
    text = _WIDE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return unicodedata.normalize("NFC", text).lower()
