"""MiniGPT-4 (arXiv 2304.10592) from the three places it is published in: the eyes and the Q-Former of a BLIP-2 folder
(whatever its language model is), a Llama-style language model, and the one linear layer that was trained between them.

transformers has the whole as a Blip2ForConditionalGeneration with a Llama behind it, and so it is written.
"""

from __future__ import annotations

from typing import Sequence

import jax
from etils import epath
from flax import traverse_util

from vlm_jax.data.files import read_json
from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.model import ModelConfig, abstract_params
from vlm_jax.models.transformer import Params
from vlm_jax.weights.huggingface import folder, projector, safetensors
from vlm_jax.weights.huggingface.families import blip2, decoder
from vlm_jax.weights.huggingface.table import Weight, import_params

IMAGE = 0  # <unk>: an id that Llama's byte fallback never writes, and whose embedding an image token does not use


def compose(
    eyes: epath.PathLike, language: epath.PathLike, projection: epath.PathLike,
) -> tuple[ModelConfig, Params]:
    """The model of two folders, every parameter as it is stored, and of a projection in a file (see `projector.load`:
    `llama_proj.weight` and `llama_proj.bias` as safetensors), in float32.

    Raises ValueError where a part is not what it should be or does not fit the others.
    """
    eyes, language = epath.Path(eyes), epath.Path(language)
    hf, parts = read_json(eyes / folder.CONFIG), read_json(language / folder.CONFIG)
    if hf.get("model_type") != "blip-2" or parts.get("model_type") not in blip2.LLAMAS:
        raise ValueError(f"{eyes} holds a model of type '{hf.get('model_type')}' and {language} one of type "
                         f"'{parts.get('model_type')}'; MiniGPT-4 is made of 'blip-2' and one of "
                         f"{', '.join(blip2.LLAMAS)}.")
    config = ModelConfig(
        vision=blip2.vision_config(hf.get("vision_config") or {}), decoder=folder.load_config(language).decoder,
        connector=ConnectorConfig("qformer", qformer=blip2.qformer_config(hf)))
    looking = [*blip2.vision_table(config.vision), *blip2.qformer_table(config.connector.qformer)]
    abstract = abstract_params(config)
    shapes = traverse_util.flatten_dict(abstract, sep="/")
    flat = _read(eyes, looking, shapes, lambda name: None if name.startswith("language_") else name)
    flat |= _read(language, decoder.table(config.decoder), shapes, decoder.rename)
    params = traverse_util.unflatten_dict(flat, sep="/")
    linear = projector.load(projection, {"linear_1": abstract["connector"]["linear_1"]})
    return config, params | {"connector": params["connector"] | linear}


def _read(files: epath.Path, table: Sequence[Weight], shapes: Params, rename) -> dict[str, jax.Array]:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with safetensors.Reader(files, rename) as reader:
        stored = {row.ours: reader.dtype(row.names(1)[0]) for row in table if row.names(1)[0] in reader.names}
        abstract = {row.ours: jax.ShapeDtypeStruct(
            shapes[row.ours].shape, stored.get(row.ours, shapes[row.ours].dtype), sharding=device) for row in table}
        return import_params(table, reader, abstract)


def save(
    out: epath.Path, config: ModelConfig, params: Params, eyes: epath.PathLike, language: epath.PathLike,
) -> None:
    """Writes a folder in Hugging Face layout, with the tokenizer of `language` and the image processor of `eyes`."""
    eyes, language = epath.Path(eyes), epath.Path(language)
    folder.copy_files(language, out)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (eyes / name).exists():
            (out / name).write_bytes((eyes / name).read_bytes())
    hf = blip2.hf_config(config) | {"image_token_index": IMAGE, "dtype": str(params["decoder"]["embedding"].dtype)}
    text = {key: value for key, value in read_json(language / folder.CONFIG).items() if key != "architectures"}
    folder.save_json(out / folder.CONFIG, hf | {"text_config": text})
    folder.save_params(out, blip2.FAMILY, config, params)
