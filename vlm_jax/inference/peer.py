"""What transformers answers to the inputs that a model of ours takes, and how far apart the two are.

torch and transformers are the extra `peer`; nothing here imports them before it is asked.
"""

from __future__ import annotations

import json
from typing import Any, Iterator, Mapping

import numpy as np
from etils import epath
from PIL import Image

from vlm_jax.data.huggingface.processor import HfProcessor
from vlm_jax.inference import encoders
from vlm_jax.models.model import ModelConfig

ABSOLUTE, RELATIVE = 1e-4, 1e-5  # float32 on the CPU: what another order of summation costs, with some room
NEW_TOKENS = 8
SAME = {"image_features": "image_hidden_states"}  # our name -> theirs, where they differ
MASKED = {"logits": "attention_mask", "hidden_states": "attention_mask", "last_hidden_state": "pixel_attention_mask"}
Arrays = dict[str, np.ndarray]


class Peer:
    """A folder in Hugging Face layout as its class of transformers: CPU, float32, eager attention.

    Raises ValueError without the extra, and for a class that the installed version lacks.
    """

    def __init__(self, folder: epath.PathLike):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ValueError("Comparing with transformers needs the extra 'peer'; make install EXTRAS=peer.") from error
        name = json.loads((epath.Path(folder) / "config.json").read_text())["architectures"][0]
        if not hasattr(transformers, name):
            raise ValueError(f"transformers {transformers.__version__} has no class {name}; nothing to compare with.")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._torch = torch
        self._model = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Every output that is an array, or a tuple of arrays of one shape; states of padding are zero, as ours are."""
        with self._torch.no_grad():
            out = self._model(**self._tensors(inputs), output_hidden_states=True)
        arrays = {name: _array(value) for name, value in out.items()}
        arrays = {name: value for name, value in arrays.items() if value is not None}
        for name, mask in MASKED.items():
            if name in arrays and inputs.get(mask) is not None:
                arrays[name] = arrays[name] * (np.asarray(inputs[mask])[..., None] > 0)
        return arrays

    def generate(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Greedy tokens [b, NEW_TOKENS]; rows run on past an end token."""
        with self._torch.no_grad():
            out = self._model.generate(**self._tensors(inputs), do_sample=False, max_new_tokens=NEW_TOKENS,
                                       eos_token_id=None, pad_token_id=0)
        return out.numpy()[:, -NEW_TOKENS:]

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: self._torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, (tuple, list)) and value and all(hasattr(one, "numpy") for one in value):
        arrays = [one.numpy() for one in value]
        return np.stack(arrays) if len({one.shape for one in arrays}) == 1 else None
    return value.numpy() if hasattr(value, "numpy") else None


def within(got: np.ndarray, wanted: np.ndarray) -> tuple[float, bool]:
    """(largest difference, whether all are within ABSOLUTE + RELATIVE |wanted|)."""
    error = np.abs(got.astype(np.float64) - wanted)
    return float(error.max(initial=0)), bool((error <= ABSOLUTE + RELATIVE * np.abs(wanted)).all())


def compared(ours: Arrays, theirs: Arrays) -> Iterator[tuple[str, float, bool]]:
    """(output, largest difference, within tolerance) of every output that both have; of other sizes they differ."""
    for name, value in ours.items():
        wanted = theirs.get(SAME.get(name, name))
        if wanted is not None and wanted.size != value.size:
            yield name, float("nan"), False
        elif wanted is not None:
            yield name, *within(value, wanted.reshape(value.shape))


def questions(config: ModelConfig, processor: HfProcessor | None) -> Arrays:
    """Inputs that reach every part of a model: two rows of uneven length, two images of different shape. An encoder
    alone, without a processor, gets noise of the size it was made for.

    Raises ValueError for a model of images and text whose folder holds no processor: only that knows how they are joined.
    """
    rng = np.random.default_rng(0)
    if config.decoder is not None and config.vision is None:
        ids = rng.integers(3, config.decoder.vocab_size, (2, 12))
        mask = np.arange(12) >= np.array([[0], [5]])
        return {"input_ids": np.where(mask, ids, 0), "attention_mask": mask.astype(np.int64)}
    alone = config.decoder is None and config.text is None
    if alone and (processor is None or processor.image_processor is None):
        return encoders.noise(config.vision, rng)
    if processor is None or processor.image_processor is None:
        raise ValueError("Only a processor knows how this model's images are prepared; copy its preprocessor_config.json, "
                         "and where it reads text its tokenizer, next to config.json.")
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((48, 64), (90, 40))]
    if config.decoder is not None:
        say = [[{"type": "image"}, {"type": "text", "text": text}] for text in ("What is this?", "A cat or a dog, and why?")]
        return processor(messages=[[{"role": "user", "content": content}] for content in say],
                         images=[[picture] for picture in pictures])
    if config.text is not None:
        return processor(text=["a photo of a cat", "two dogs"], images=[[picture] for picture in pictures])
    return processor.images(pictures)
