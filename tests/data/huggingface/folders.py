"""Folders in Hugging Face layout, made for the tests of processors."""

import json
import struct

import numpy as np
import tokenizers
from PIL import Image

RNG = np.random.default_rng(0)


def picture(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tokenizer_json(special, post=("$A",), merges=()):
    """A byte-level tokenizer: ids of plain text are those of its bytes but for a few merges; `special` come first."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *letters, *("".join(merge) for merge in merges)]
    t = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(list(special))
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single=list(post), special_tokens=[(token, t.token_to_id(token)) for token in special])
    return json.loads(t.to_str())


def spm(pieces, kind, dummy_prefix=1, byte_fallback=0):
    """A sentencepiece model file, field by field."""
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data
    number = lambda at, value: bytes([at << 3, value])
    rows = [field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + number(3, type_))
            for text, score, type_ in pieces]
    trainer = number(3, kind) + (b"\x98\x02" + bytes([byte_fallback]))  # field 35
    return b"".join(rows) + field(2, trainer) + field(3, number(3, dummy_prefix) + number(4, 0))


def write(folder, template=None, **files):
    """JSON files by name, and the chat template."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def user(*parts):
    """A user's message; None stands for an image."""
    return {"role": "user", "content": [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]}


def assistant(text):
    return {"role": "assistant", "content": text}
