"""A sentencepiece model file (tokenizer.model) as a tokenizer of the `tokenizers` library.

Sources: sentencepiece_model.proto for the fields, bpe_model.cc and unigram_model.cc for the behaviour. Ids equal the
sentencepiece library's but in two corners, where they are those of transformers' fast tokenizers: a letter with a
combining mark that the normalisation table has no entry for, and a user-defined piece that opens a text.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import struct
from typing import Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
SPACE = "\u2581"


@dataclasses.dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


def load(data: bytes, bare: bool = True) -> tuple[tokenizers.Tokenizer, frozenset[int]]:
    """The tokenizer of a model file, which adds nothing to a text, and the ids that stand for nothing in one.

    `bare`, as in the sentencepiece library, no text is a control piece, and what is unknown is written \u2047; else both
    are ordinary tokens, which transformers makes special ones.

    Raises ValueError for bytes that are no such file, or a model of whole words or characters.
    """
    try:
        message = _message(data)
        pieces = [_piece(part) for part in message[1]]
        trainer, normalizer = _message(message[2][0]), _message(message[3][0])
    except (KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"tokenizer.model is no sentencepiece model ({error!r}); copy it again.") from error
    kind, byte_fallback = trainer.get(3, [UNIGRAM])[0], bool(trainer.get(35, [0])[0])
    if kind not in (UNIGRAM, BPE):
        raise ValueError("tokenizer.model is of words or characters; only bpe and unigram are supported.")
    control = frozenset(i for i, piece in enumerate(pieces) if piece.kind == CONTROL) if bare else frozenset()
    build = functools.partial(_unigram, hidden=control) if kind == UNIGRAM else _bpe
    backend = tokenizers.Tokenizer(build(pieces, byte_fallback))
    backend.normalizer = _normalizer(normalizer)
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    backend.decoder = decoders.Sequence([
        *[decoders.Replace(Regex(f"^{re.escape(unknown)}$"), " \u2047 ")] * bare, decoders.Replace(SPACE, " "),
        decoders.ByteFallback(), decoders.Fuse(), *[decoders.Strip(" ", 1, 0)] * bool(normalizer.get(3, [1])[0])])
    defined = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=False) for text in defined])
    return backend, control


def _bpe(pieces: list[Piece], byte_fallback: bool) -> models.BPE:
    """Merges are not in the file: any two pieces that together are a third may merge, best score first."""
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    merged = {piece.text: piece.score for piece in pieces if piece.kind in (NORMAL, USER_DEFINED)}
    merges = [(text[:i], text[i:]) for text in sorted(merged, key=lambda text: (-merged[text], ids[text]))
              for i in range(1, len(text)) if text[:i] in merged and text[i:] in merged]
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)


def _unigram(pieces: list[Piece], byte_fallback: bool, hidden: frozenset[int]) -> models.Unigram:
    # A blank in its name hides a piece: the normalizer leaves none in a text.
    vocabulary = [(" " + piece.text if i in hidden else piece.text, piece.score) for i, piece in enumerate(pieces)]
    unknown = next(i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    return models.Unigram(vocabulary, unknown, byte_fallback)


def _normalizer(spec: dict[int, list]) -> normalizers.Normalizer:
    """NormalizerSpec: 2 the table of replacements, 3 a blank in front, 4 no blanks at the ends nor in a row."""
    steps = [normalizers.Precompiled(spec[2][0])] if spec.get(2, [b""])[0] else []
    if spec.get(4, [1])[0]:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.get(3, [1])[0]:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _piece(data: bytes) -> Piece:
    fields = _message(data)
    return Piece(fields[1][0].decode(), struct.unpack("<f", fields[2][0])[0], fields.get(3, [NORMAL])[0])


def _message(data: bytes) -> dict[int, list]:
    """Protocol-buffer fields by number: varints as integers, all else as bytes."""
    fields: dict[int, list] = {}
    for number, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value, shift, more = value | (data[at] & 127) << shift, shift + 7, data[at] > 127
        at += 1
        if not more:
            return value, at
