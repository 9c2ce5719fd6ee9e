"""LLaVA 1.0 and 1.5: a token for each patch, and for the class token where it is kept (strategy "full")."""

from __future__ import annotations

from vlm_jax.data.huggingface.marks.marks import Files, Marks, told
from vlm_jax.models.tokens import Fixed

SELECT = "vision_feature_select_strategy"


def marks(files: Files) -> Marks:
    files.layout(Fixed)
    size = files.images.crop or files.images.resize
    if not isinstance(size, tuple):
        raise ValueError("preprocessor_config.json gives images of any size, of which LLaVA has no number of tokens; "
                         "let it crop.")
    rows, columns = (side // patch(files) for side in size)
    return Marks(files.image_token(), files.image_token(), Fixed(rows * columns + kept(files)))


def patch(files: Files) -> int:
    """Pixels a side of a patch."""
    return told("patch_size", files.processor.get("patch_size"), files.vision("patch_size"))


def kept(files: Files) -> int:
    """Tokens beside those of the patches: 1 where the class token is kept, -1 where patches are taken for it."""
    has_class = int(files.vision("model_type") in (None, "clip_vision_model"))
    strategy = files.processor.get(SELECT) or files.config.get(SELECT, "default")
    return files.processor.get("num_additional_image_tokens", has_class) - (strategy == "default")
