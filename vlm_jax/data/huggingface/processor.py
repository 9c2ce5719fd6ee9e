"""Processors of published checkpoints: a folder's tokenizer, chat template and image steps as one function."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from vlm_jax.data.huggingface import images as hf_images, tokenizer as hf_tokenizer
from vlm_jax.data.huggingface.images import HfImageProcessor
from vlm_jax.data.huggingface.template import ChatTemplate
from vlm_jax.data.huggingface.tokenizer import HfTokenizer, read_json
from vlm_jax.models.tokens import patch_grid

Images = Sequence[Image.Image | np.ndarray]
Messages = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class PairText:
    """How a text tower wants its rows: at most `context` ids, padded to that or to the longest of the batch."""

    context: int
    to_context: bool = False
    mask: bool = True


@dataclasses.dataclass(frozen=True)
class ImageMark:
    """What stands for an image in a prompt, and how many tokens take its place."""

    text: str
    tokens: int


@dataclasses.dataclass(frozen=True)
class HfProcessor:
    """Parts that a folder lacks are None. `pair` is set for two-tower models, `mark` for those that talk."""

    tokenizer: HfTokenizer | None = None
    image_processor: HfImageProcessor | None = None
    template: ChatTemplate | None = None
    pair: PairText | None = None
    mark: ImageMark | None = None

    def tokenize(self, text: str) -> list[int]:
        """Ids with the special tokens that this checkpoint adds; a bare tokenizer.model adds none.

        As in transformers, a special token written out in the text becomes that token.
        """
        return _has(self.tokenizer, "tokenizer").tokenize(text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids, special tokens written out unless skipped."""
        return _has(self.tokenizer, "tokenizer").decode(ids, skip_special_tokens)

    def images(self, images: Images) -> dict[str, np.ndarray]:
        """`pixel_values` [n, 3, height, width] float32 of images, PIL or uint8 H x W x 3."""
        return {"pixel_values": _has(self.image_processor, "image processor")(images)}

    def chat(self, messages: Messages, add_generation_prompt: bool = True, **variables: Any) -> str:
        """A conversation as the prompt that this checkpoint's template makes of it."""
        return _has(self.template, "chat template").render(messages, add_generation_prompt, **variables)

    def __call__(self, messages: Sequence[Messages] | None = None, text: Sequence[str] | None = None,
                 images: Sequence[Images] | None = None, padding_side: str = "left") -> dict[str, np.ndarray]:
        """What `forward` takes: `input_ids` and `attention_mask` [b, t] int64, `pixel_values` of all images.

        `messages` (one conversation a row, ended by the generation prompt) or `text`; `images` has one list a row.
        In a prompt each image has its mark; user text that spells the mark counts as one. Rows are padded to the
        longest on `padding_side`; text towers, whose positions are absolute, always on the right, as in
        transformers. Raises ValueError where marks and images do not match, or a file for what is asked is missing.
        """
        if (messages is not None and text is not None) or padding_side not in ("left", "right"):
            raise ValueError("Give messages or text, not both, and padding_side 'left' or 'right'.")
        inputs = {}
        if messages is not None:
            prompts = [self.chat(conversation) for conversation in messages]
            inputs = self._rows(prompts, images, padding_side, chat=True)
        elif text is not None:
            inputs = self._rows(list(text), images, padding_side)
        flat = [image for row in images or [] for image in row]
        return inputs | (self.images(flat) if flat else {})

    def _rows(self, prompts: list[str], images: Sequence[Images] | None, side: str, chat: bool = False):
        tokenizer = _has(self.tokenizer, "tokenizer")
        if self.pair is not None:
            context = self.pair.context
            return self._pair_rows([tokenizer.tokenize(prompt, max_length=context) for prompt in prompts])
        complete = [chat and self._is_complete(prompt) for prompt in prompts]
        prompts = self._expanded(prompts, images)
        rows = [tokenizer.tokenize(prompt, special=not done) for prompt, done in zip(prompts, complete)]
        ids, mask = self._padded(rows, max(map(len, rows)), side)
        return {"input_ids": ids, "attention_mask": mask}

    def _is_complete(self, prompt: str) -> bool:
        """Whether a rendered prompt takes no further special tokens. transformers' tokenizers trust the template;
        its processors of text and images add theirs unless the template has written the begin token."""
        begin = self.tokenizer.special.get("bos_token")
        return self.image_processor is None or bool(begin) and prompt.startswith(begin)

    def _pair_rows(self, rows: list[list[int]]) -> dict[str, np.ndarray]:
        length = self.pair.context if self.pair.to_context else max(map(len, rows))
        ids, mask = self._padded(rows, length, "right")
        return {"input_ids": ids} | ({"attention_mask": mask} if self.pair.mask else {})

    def _expanded(self, prompts: list[str], images: Sequence[Images] | None) -> list[str]:
        """The prompts with each image mark as often as the image has tokens."""
        counts = [len(row) for row in images] if images is not None else [0] * len(prompts)
        if len(counts) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(counts)} lists of images; give one list a prompt.")
        if self.mark is None:
            if any(counts):
                raise ValueError("This processor has no image mark; only text can be prompted.")
            return prompts
        for i, (prompt, count) in enumerate(zip(prompts, counts)):
            if (marks := prompt.count(self.mark.text)) != count:
                raise ValueError(f"Prompt {i} has {marks} {self.mark.text} marks for {count} images; "
                                 f"write one mark for each image.")
        return [prompt.replace(self.mark.text, self.mark.text * self.mark.tokens) for prompt in prompts]

    def _padded(self, rows: list[list[int]], length: int, side: str) -> tuple[np.ndarray, np.ndarray]:
        known = (self.tokenizer.id(name) for name in ("pad_token", "eos_token"))
        pad = next((i for i in known if i is not None), 0)
        ids, mask = np.full((len(rows), length), pad, np.int64), np.zeros((len(rows), length), np.int64)
        for i, row in enumerate(rows):
            place = slice(length - len(row), length) if side == "left" else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        return ids, mask


def _has(part: Any, name: str) -> Any:
    if part is None:
        raise ValueError(f"This folder has no {name}; copy its files next to config.json.")
    return part


def load(folder: epath.PathLike) -> HfProcessor:
    """The processor of a folder in Hugging Face layout; tokenizer files alone or image files alone will do.

    Raises FileNotFoundError where there are neither, ValueError where a file is damaged or of an unknown kind.
    """
    folder = epath.Path(folder)
    config, joined = read_json(folder / "config.json"), read_json(folder / "processor_config.json")
    pixels = read_json(folder / "preprocessor_config.json") or joined.get("image_processor")
    tokenizer = hf_tokenizer.load(folder)
    if tokenizer is None and not pixels:
        raise FileNotFoundError(f"There is neither a tokenizer nor a preprocessor_config.json in {folder}.")
    images = hf_images.from_config(pixels) if pixels else None
    settings = read_json(folder / "tokenizer_config.json")
    source = _template(folder, joined, settings)
    kind = config.get("model_type") or _kind(joined, settings, pixels or {})
    talks = kind == "llava" and tokenizer and images
    return HfProcessor(
        tokenizer=tokenizer, image_processor=images,
        template=None if source is None else ChatTemplate(source, tokenizer.special if tokenizer else {}),
        pair=_pair(kind, config, tokenizer) if tokenizer else None,
        mark=_llava_mark(config, joined, tokenizer, images) if talks else None)


def _kind(*configs: Mapping[str, Any]) -> str:
    """The model type where there is no config.json: `LlavaProcessor` names it."""
    name = next((config["processor_class"] for config in configs if config.get("processor_class")), "")
    return name.removesuffix("Processor").lower()


def _template(folder: epath.Path, joined: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The source of the chat template, from the newest place that has one to the oldest."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text()
    old = read_json(folder / "chat_template.json").get("chat_template")
    found = old or joined.get("chat_template") or settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found


def _pair(kind: str, config: Mapping[str, Any], tokenizer: HfTokenizer) -> PairText | None:
    positions = (config.get("text_config") or {}).get("max_position_embeddings") or tokenizer.max_length
    if kind == "clip":
        return PairText(positions or 77)
    if kind == "siglip":  # trained on full rows, padding and all, without a mask
        return PairText(positions or 64, to_context=True, mask=False)
    return None


def _llava_mark(config: Mapping[str, Any], joined: Mapping[str, Any], tokenizer: HfTokenizer,
                images: HfImageProcessor) -> ImageMark:
    """LLaVA's mark: a token for each patch, and for the class token if it is kept (strategy "full")."""
    number = config.get("image_token_index", config.get("image_token_id"))
    named = joined.get("image_token") or tokenizer.special.get("image_token")
    text = named or (tokenizer.backend.id_to_token(number) if number is not None else None) or "<image>"
    vision = config.get("vision_config") or {}
    patch = joined.get("patch_size") or vision.get("patch_size")
    size = images.crop or images.resize
    if patch is None or not isinstance(size, tuple):
        raise ValueError("How many tokens an image takes is not told; set patch_size in processor_config.json.")
    select = "vision_feature_select_strategy"
    strategy = joined.get(select) or config.get(select, "default")
    has_class = int(vision.get("model_type", "clip_vision_model") == "clip_vision_model")
    extra = joined.get("num_additional_image_tokens", has_class)
    rows, columns = (patch_grid(side, patch, drop_remainder=True)[0] for side in size)
    return ImageMark(text, rows * columns + extra - (strategy == "default"))
