"""Tokenizers of published checkpoints, whichever files they come in.

As in transformers, and unlike our own tokenizer, a special token written out in a user's text becomes that token.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Mapping, Sequence

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from vlm_jax.data.clip import bpe as clip
from vlm_jax.data.huggingface import bytelevel, sentencepiece

SENTENCEPIECE = ("tokenizer.model", "spiece.model")
NO_LENGTH = 1_000_000  # transformers writes 1e30 as model_max_length where there is none
_ENDS_WITHOUT_BEGIN = ("SiglipTokenizer", "T5Tokenizer")


class HfTokenizer:
    """special: bos_token, eos_token, pad_token and their like, by name. max_length: None where not told.

    `hidden` are ids that stand for nothing in a decoded text (a bare sentencepiece model's control ids).
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: Mapping[str, str], max_length: int | None = None,
                 hidden: frozenset[int] = frozenset()):
        backend.no_padding()  # rows are padded by the processor, which knows what they are for
        backend.no_truncation()
        if getattr(backend.model, "end_of_word_suffix", None) == clip.WORD_END:
            backend.decoder = clip.decoder()  # CLIP's files leave the marks in the text
        self.backend, self.special, self.max_length, self._hidden = backend, dict(special), max_length, hidden

    def tokenize(self, text: str, special: bool = True, max_length: int | None = None) -> list[int]:
        """Ids of a text, by default with what this checkpoint adds in front and behind.

        Longer texts lose their tail to `max_length`, not what is added.
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        added = self.backend.num_special_tokens_to_add(False) if special else 0
        if max_length is not None and len(encoding.ids) > max_length - added:
            encoding.truncate(max_length - added)
        return self.backend.post_process(encoding, add_special_tokens=special).ids

    def encode(self, text: str, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `tokenize`, and [start, end) of each in characters of the text; (0, 0) for what is added."""
        encoding = self.backend.encode(text, add_special_tokens=special)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids, special tokens written out unless skipped."""
        ids = [int(i) for i in ids if int(i) not in self._hidden]
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def special_texts(self) -> frozenset[str]:
        """The special tokens as they are spelled in a text."""
        return frozenset(token.content for token in self.backend.get_added_tokens_decoder().values() if token.special)

    @property
    def pad_id(self) -> int:
        """What fills a row: the pad token, the end token where there is none, 0 where there is neither."""
        known = (self.id(name) for name in ("pad_token", "eos_token"))
        return next((i for i in known if i is not None), 0)

    def id(self, name: str) -> int | None:
        """Id of a special token by its name, `pad_token`; None where the checkpoint has none."""
        return self.backend.token_to_id(self.special[name]) if name in self.special else None


def load(folder: epath.PathLike) -> HfTokenizer | None:
    """A folder's tokenizer: tokenizer.json, else a sentencepiece model, else vocab.json and merges.txt.

    None where there are no such files; ValueError where they are damaged or of another kind.
    """
    folder = epath.Path(folder)
    config = read_json(folder / "tokenizer_config.json")
    model_type = read_json(folder / "config.json").get("model_type")
    special = _special(read_json(folder / "special_tokens_map.json") | config)
    length = config.get("model_max_length")
    length = int(length) if length and length < NO_LENGTH else None
    model = next((folder / name for name in SENTENCEPIECE if (folder / name).exists()), None)
    if (folder / "tokenizer.json").exists():
        backend = _parsed(folder / "tokenizer.json")
        _add_tokens(backend, folder, config, special)
        if config.get("tokenizer_class") == "Siglip2Tokenizer" or model_type == "siglip2":
            _lower(backend)  # it was trained on such text, but its first tokenizer files leave it out
        return HfTokenizer(backend, special, length)
    if model is not None:
        backend, control = sentencepiece.load(model.read_bytes(), bare=not config)
        if config:
            _complete(backend, folder, config, special)
        return HfTokenizer(backend, special, length, control)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _from_words(folder, config, special, model_type or "", length)
    return None


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again.") from error


def _parsed(path: epath.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer file of the tokenizers library ({error}).") from error


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """The *_token entries, wherever they are; older files write each as an object with its `content`."""
    text = lambda value: value.get("content") if isinstance(value, Mapping) else value
    for group in ("extra_special_tokens", "model_specific_special_tokens"):
        config = (config[group] if isinstance(config.get(group), Mapping) else {}) | config
    named = {name: text(value) for name, value in config.items() if name.endswith("_token")}
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _listed(config: Mapping[str, Any]) -> list[str]:
    """Special tokens without a name of their own."""
    found = config.get("additional_special_tokens") or []
    return [entry["content"] if isinstance(entry, Mapping) else entry for entry in found]


def _complete(backend: tokenizers.Tokenizer, folder: epath.Path, config: Mapping[str, Any],
              special: Mapping[str, str]) -> None:
    """Makes a sentencepiece model what transformers' class makes of it: added tokens, begin and end."""
    _add_tokens(backend, folder, config, special)
    name = config.get("tokenizer_class", "").removesuffix("Fast")
    if name == "SiglipTokenizer":  # trained on texts without capitals and punctuation
        strip = [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
                 normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        backend.normalizer = normalizers.Sequence([*strip, backend.normalizer])
    if name.lower() == "llamatokenizer":  # "legacy" ones put a blank behind each special token too
        where = "always" if config.get("legacy") else "first"
        backend.normalizer, backend.pre_tokenizer = None, pre_tokenizers.Metaspace(prepend_scheme=where, split=False)
    only_end = name in _ENDS_WITHOUT_BEGIN
    _add_ends(backend, special, config.get("add_bos_token", not only_end), config.get("add_eos_token", only_end))


def _add_ends(backend: tokenizers.Tokenizer, special: Mapping[str, str], begin: bool, end: bool) -> None:
    front = [special["bos_token"]] if begin and "bos_token" in special else []
    back = [special["eos_token"]] if end and "eos_token" in special else []
    known = [(text, backend.token_to_id(text)) for text in {*front, *back}]
    backend.post_processor = processors.TemplateProcessing(single=[*front, "$A", *back], special_tokens=known)


def _add_tokens(backend: tokenizers.Tokenizer, folder: epath.Path, config: Mapping[str, Any],
                special: Mapping[str, str]) -> None:
    """Tokens that stand in the files beside the vocabulary, and then those that only have a name."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    names = {*special.values(), *_listed(config), *_listed(read_json(folder / "special_tokens_map.json"))}
    added = {text: (i, {"special": text in names})
             for text, i in read_json(folder / "added_tokens.json").items()}
    added |= {flags["content"]: (int(i), flags) for i, flags in config.get("added_tokens_decoder", {}).items()}
    for text, (number, flags) in sorted(added.items(), key=lambda item: item[1][0]):
        if text in known:
            continue
        backend.add_tokens([AddedToken(**{"normalized": False} | flags | {"content": text})])
        if backend.token_to_id(text) != number:
            raise ValueError(f"{folder}: '{text}' should have id {number}, which leaves a gap after the "
                             f"vocabulary; convert the folder to a tokenizer.json.")
    named = [text for text in dict.fromkeys(special.values()) if text not in known and text not in added]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in named])


def _lower(backend: tokenizers.Tokenizer) -> None:
    steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer else [])
    backend.normalizer = normalizers.Sequence(steps)


def _from_words(folder: epath.Path, config: Mapping[str, Any], special: Mapping[str, str], model_type: str,
                length: int | None) -> HfTokenizer:
    """Byte-level BPE of vocab.json and merges.txt."""
    vocabulary = read_json(folder / "vocab.json")
    kind = bytelevel.family(vocabulary, config.get("tokenizer_class", ""), model_type)
    lines = [line.split() for line in (folder / "merges.txt").read_text().splitlines()]
    merges = [tuple(line) for line in lines if len(line) == 2 and line[0] != "#version:"]
    try:
        backend = bytelevel.build(kind, vocabulary, merges, config.get("add_prefix_space", False))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"vocab.json and merges.txt of {folder} do not belong together ({error}).") from error
    special = bytelevel.ends(kind) | special
    if kind != bytelevel.CLIP:
        _add_tokens(backend, folder, config, special)
        _add_ends(backend, special, config.get("add_bos_token", False), config.get("add_eos_token", False))
        return HfTokenizer(backend, special, length)
    backend.post_processor = processors.RobertaProcessing(
        (clip.END, vocabulary[clip.END]), (clip.BEGIN, vocabulary[clip.BEGIN]), trim_offsets=False,
        add_prefix_space=False)
    return HfTokenizer(backend, special, length or 77)
