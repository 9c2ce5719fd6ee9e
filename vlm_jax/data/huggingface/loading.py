"""A folder in Hugging Face layout -> its processor."""

from __future__ import annotations

from typing import Any, Mapping

from etils import epath
from tokenizers import AddedToken

from vlm_jax.data.huggingface import images as hf_images, tokenizer as hf_tokenizer
from vlm_jax.data.huggingface.marks.marks import Files, Marks
from vlm_jax.data.huggingface.marks.registry import FAMILIES, Family
from vlm_jax.data.huggingface.processor import HfProcessor, PairText
from vlm_jax.data.huggingface.template import ChatTemplate
from vlm_jax.data.huggingface.tokenizer import HfTokenizer, read_json


def load(folder: epath.PathLike) -> HfProcessor:
    """The processor of a folder in Hugging Face layout; tokenizer files alone or image files alone will do.

    Raises FileNotFoundError where there are neither, ValueError where a file is damaged or of an unknown kind.
    """
    folder = epath.Path(folder)
    config, joined = read_json(folder / "config.json"), read_json(folder / "processor_config.json")
    pixels = read_json(folder / "preprocessor_config.json") or joined.get("image_processor") or {}
    tokenizer = hf_tokenizer.load(folder)
    if tokenizer is None and not pixels:
        raise FileNotFoundError(f"There is neither a tokenizer nor a preprocessor_config.json in {folder}.")
    settings = read_json(folder / "tokenizer_config.json")
    source, kind = _template(folder, joined, settings), _kind(config, joined, settings, pixels)
    family = FAMILIES.get(kind) if tokenizer and pixels else None
    images = hf_images.from_config(pixels | (family.pixels if family else {})) if pixels else None
    marks = _marks(family, Files(config, joined, pixels, images, tokenizer)) if family else None
    return HfProcessor(
        tokenizer=tokenizer, image_processor=images,
        template=None if source is None else ChatTemplate(source, tokenizer.special if tokenizer else {}),
        pair=_pair(kind, config, tokenizer) if tokenizer else None,
        marks=marks)


def _marks(family: Family, files: Files) -> Marks:
    """The family's marks, known to the tokenizer: some checkpoints leave it to their processor to add the token."""
    marks, backend = family.marks(files), files.tokenizer.backend
    missing = [text for text in {marks.mark, marks.token} if backend.token_to_id(text) is None]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in missing])
    told = files.config.get("image_token_id", files.config.get("image_token_index"))
    if told not in (None, number := backend.token_to_id(marks.token)):
        raise ValueError(f"An image's token is {told} in config.json, but {marks.token} is {number} in the tokenizer; "
                         f"give the folder the tokenizer of its own.")
    return marks


def _kind(config: Mapping[str, Any], *others: Mapping[str, Any]) -> str:
    """The model type without dashes, qwen25vl; where there is no config.json a Qwen2_5_VLProcessor names it."""
    names = [config.get("model_type"), *(other.get("processor_class") for other in others)]
    name = next(filter(None, names), "").removesuffix("Processor")
    return name.lower().replace("_", "").replace("-", "")


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
    if kind in ("siglip", "siglip2"):  # trained on full rows, padding and all, without a mask
        return PairText(positions or 64, to_context=True, mask=False)
    return None
