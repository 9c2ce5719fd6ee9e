"""The tokenizer: a byte-level BPE through the `tokenizers` library, trained on a run's own text, loaded from a file, or
CLIP's by its name.

Any text can be encoded (bytes are its alphabet), and no text becomes a special token: those enter as ids, never as
strings.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable, Iterable, Mapping, Sequence

import tokenizers
from etils import epath

from vlm_jax.data.clip import bpe as clip

PAD, BOS, EOS, IMAGE, IMAGE_START, IMAGE_END = SPECIAL_TOKENS = (
    "<pad>", "<s>", "</s>", "<image>", "<image_start>", "<image_end>")
NAMED = {"clip": clip.openai}  # tokenizers that come with the package


@dataclasses.dataclass(frozen=True)
class Convention:
    """The vocabulary's own names of the special tokens, and what is done to a text before it is encoded."""

    names: Mapping[str, str]
    clean: Callable[[str], str] = str


OWN = Convention({token: token for token in SPECIAL_TOKENS})
# OpenAI pads with id 0, which is "!": it stands behind the end token, where nothing looks.
CLIP = Convention({PAD: "!", BOS: clip.BEGIN, EOS: clip.END}, clip.clean)


class Tokenizer:
    """Encodes plain text; `special` maps each special token to its id. CLIP's vocabulary has none for images."""

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.encode_special_tokens = True  # "</s>" in a user's text is five characters, not the end token
        self.backend = backend
        convention = CLIP if backend.token_to_id(clip.END) is not None else OWN
        added = backend.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in added.items() if token.special}
        self.special |= {token: backend.token_to_id(name) for token, name in convention.names.items()}
        missing = [token for token, number in self.special.items() if number is None]
        if missing:
            raise ValueError(f"The tokenizer has no {', '.join(missing)}; train it with vlm_jax.data.tokenizer.train.")
        # Templates and short answers come again and again: a cache takes most of the cost of a row.
        self._ids = functools.lru_cache(maxsize=2**14)(
            lambda text: backend.encode(convention.clean(text), add_special_tokens=False).ids)

    def __reduce__(self):
        return Tokenizer, (self.backend,)  # to a worker process, without the cache

    def __len__(self) -> int:
        """Number of ids."""
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing is added in front or behind."""
        return list(self._ids(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        return self.backend.to_str(pretty=True)


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a `tokenizer.json`, or the one in a workdir, or takes the one of that name in NAMED."""
    if path in NAMED:
        return Tokenizer(NAMED[path]())
    path = epath.Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"There is no tokenizer at {path}; set processor.tokenizer to a tokenizer.json.")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer file of the tokenizers library ({error}).") from error
    return Tokenizer(backend)


def train(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, the 256 bytes and the special tokens included; `special` are more
    of these (a chat template's own).

    The same texts in the same order give the same tokenizer.
    """
    smallest = 256 + len(SPECIAL_TOKENS) + len(special)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is too small; bytes and special tokens alone need {smallest}.")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *special], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
