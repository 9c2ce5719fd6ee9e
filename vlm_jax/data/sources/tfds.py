"""TensorFlow Datasets, read through `tfds.data_source`: no TensorFlow takes part.

Also a data set that the user prepared, as long as its files are in the ArrayRecord format.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data.encoded import EncodedImage, EncodedImages
from vlm_jax.data.records import Record
from vlm_jax.data.sources.said import check_prompt, said


@dataclasses.dataclass(frozen=True)
class TfdsConfig:
    """`name`: as `tfds.data_source` takes it ("coco_captions", "my_set:1.0.0"), or the folder of a prepared data set.

    `split` is theirs ("train", "train[:90%]"); `data_dir` where data sets lie, None is ~/tensorflow_datasets.
    `image`: the feature with the image; `caption`: the one with the words, a text or a class label (its name is used).
    Data sets with the features conversations, or prefix and suffix, need no caption.
    `prompt`: what the user says before a caption; None yields captions without a conversation.
    """

    kind: ClassVar[str] = "tfds"
    name: str
    split: str = "train"
    data_dir: str | None = None
    image: str = "image"
    caption: str = "caption"
    prompt: str | None = "Describe the image."


class TfdsSource:
    """Record i: example i of the split; `meta` has `example`, counted from 0."""

    def __init__(self, config: TfdsConfig, keep_bad: bool = False):
        check_prompt(config.prompt)
        self.config = config
        self._builder, self._examples = _open(config)
        self._features = self._builder.info.features

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"tfds: example {index} is outside 0..{len(self) - 1}")
        index %= len(self)
        where = f"{self.config.name} {self.config.split}, example {index}"
        try:
            example = self._examples[index]
        except Exception as error:  # whatever damage leads to in their parser
            raise ValueError(f"{where} cannot be read ({error}); prepare the data set again") from error
        data = example.get(self.config.image)
        files = [] if data is None else [EncodedImage(where, self.config.image, lambda: bytes(data))]
        fields = {name: self._plain(name, value) for name, value in example.items() if name != self.config.image}
        words = said(fields, len(files), where, self.config.prompt, self.config.caption)
        return Record(EncodedImages(files), words.caption, words.conversations, meta={"example": index})

    def _plain(self, name: str, value: Any) -> Any:
        """Bytes to text, class labels to their names, sequences of {from, value} to lists of turns."""
        if name == "conversations" and isinstance(value, dict):
            return [{key: _text(item) for key, item in zip(value, turn)} for turn in zip(*value.values())]
        label = self._features[name]
        if hasattr(label, "int2str") and name == self.config.caption:
            return label.int2str(int(value))
        return _text(value)


def _text(value: Any) -> Any:
    """UTF-8 bytes as text; what is not stays as it is and is refused where it is used."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _open(config: TfdsConfig) -> tuple[Any, Any]:
    """(builder, random access to examples with their images undecoded)."""
    import tensorflow_datasets as tfds  # here: only its users owe the second it takes

    try:
        if "/" in config.name and "://" not in config.name and config.name.startswith(("/", ".", "~")):
            builder = tfds.builder_from_directory(config.name)
        else:
            builder = tfds.builder(config.name, data_dir=config.data_dir)
        images = {name: tfds.decode.SkipDecoding() for name, feature in builder.info.features.items()
                  if isinstance(feature, tfds.features.Image)}
        examples = builder.as_data_source(split=config.split, decoders=images or None)
    except Exception as error:  # of many kinds: not found, no such split, files in another format
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"The TFDS data set {config.name} cannot be opened ({first}); prepare it with "
                         f"file_format='array_record' and check name, split and data_dir.") from error
    return builder, examples
