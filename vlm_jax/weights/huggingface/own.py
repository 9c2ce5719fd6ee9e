"""A model that a run of ours trained, written as a LlavaForConditionalGeneration with its LlavaProcessor."""

from __future__ import annotations

import json
from typing import Any

import jax
from etils import epath

from vlm_jax.data.files import write_atomically
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.processor import Processor
from vlm_jax.data.templates import ChatTemplate
from vlm_jax.data.tokenizer import BOS, EOS, IMAGE, IMAGE_END, IMAGE_START, PAD
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.transformer import Params
from vlm_jax.weights.huggingface import folder as folders
from vlm_jax.weights.huggingface.families import llava
from vlm_jax.weights.huggingface.family import HfConfig

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def save(folder: epath.Path, config: ModelConfig, params: Params, processor: Processor) -> None:
    """Writes eyes, connector and decoder, and all that transformers needs to ask them the way our chat does.

    Text tower and projections, which that class lacks, are left out. Raises ValueError for what it cannot express.
    """
    if config.decoder is None:
        raise ValueError("Only a model with a decoder can be exported yet; this one has image and text tower alone.")
    parts = ModelConfig(vision=config.vision, connector=config.connector, decoder=config.decoder)
    hf = llava.FAMILY.hf_config(parts)
    ids = {"bos_token_id": processor.bos_id, "eos_token_id": processor.end_id, "pad_token_id": processor.pad_id}
    hf |= {"image_token_index": processor.tokenizer.special[IMAGE], "torch_dtype": str(jax.tree.leaves(params)[0].dtype)}
    hf["text_config"] |= ids
    image = image_processor(processor.config.image)
    files = {
        folders.CONFIG: hf,
        folders.GENERATION: {**ids, "suppress_tokens": list(processor.banned_ids)},
        "preprocessor_config.json": {**image, "processor_class": "LlavaProcessor"},
        "processor_config.json": _llava_processor(parts, hf) | {"image_processor": image},
        "tokenizer_config.json": _TOKENIZER,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        folders.save_json(folder / name, values)
    write_atomically(folder / "tokenizer.json", processor.tokenizer.to_json())
    write_atomically(folder / "chat_template.jinja", jinja(processor.template, processor.config.layout))
    folders.save_params(folder, llava.FAMILY, parts, {name: params[name] for name in ("vision", "connector", "decoder")})


_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaProcessor", "padding_side": "left",
    "bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "image_token": IMAGE, "clean_up_tokenization_spaces": False}


def _llava_processor(config: ModelConfig, hf: HfConfig) -> HfConfig:
    """What LlavaProcessor counts visual tokens with; a class token is an additional one."""
    return {"processor_class": "LlavaProcessor", "patch_size": config.vision.patch_size, "image_token": IMAGE,
            "num_additional_image_tokens": config.vision.prefix,
            "vision_feature_select_strategy": hf["vision_feature_select_strategy"]}


def image_processor(image: ImageProcessor) -> dict[str, Any]:
    """preprocessor_config.json of CLIP's image processor, or of LLaVA's where images are padded."""
    height, width = image.size
    if image.resize != "squash" and height != width:
        raise ValueError(f"transformers has no image processor with resize '{image.resize}' to {height} x {width}; it "
                         f"takes squares only.")
    whole, kind = {"height": height, "width": width}, "CLIPImageProcessor"
    more: dict[str, Any] = {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": whole}
    if image.resize == "squash":
        more |= {"size": whole, "do_center_crop": False}
    elif image.resize == "pad":
        more, kind = more | {"do_pad": True}, "LlavaImageProcessor"
    return {"image_processor_type": kind, "do_convert_rgb": True, "do_resize": True, **more,
            "resample": RESAMPLE[image.resample], "do_rescale": True, "rescale_factor": image.rescale,
            "do_normalize": True, "image_mean": list(image.mean), "image_std": list(image.std)}


def jinja(chat: ChatTemplate, layout: str) -> str:
    """Our template as chat_template.jinja: contents are strings, or lists of {"type": "image"} and {"type": "text"}.

    An image of a list has a line of its own, as in our chat. Special tokens are written out: transformers reads them
    as such in a text, which our tokenizer never does. Raises ValueError for a template that drops what users say.
    """
    if not chat.user_text:
        raise ValueError("The processor's template drops what a user says, and is none to chat with; train the model's "
                         "last stage with another, such as 'llava'.")
    mark = {"interleaved": IMAGE, "delimited": IMAGE_START + IMAGE + IMAGE_END, "front": ""}[layout]
    image = json.dumps(mark + "\n" if mark else "")
    text = ("{% macro said(m) %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
            f"{{% if c.type == 'image' %}}{{{{ {image} }}}}{{% else %}}{{{{ c.text }}}}{{% endif %}}"
            "{% endfor %}{% endif %}{% endmacro %}")
    front = ""
    if layout == "front":
        front = ("{% for m in messages %}{% if m.content is not string %}{% for c in m.content %}"
                 f"{{% if c.type == 'image' %}}{_literal(IMAGE)}{{% endif %}}{{% endfor %}}{{% endif %}}{{% endfor %}}")
    set_system = (f"{{% set ns = namespace(last='', system={json.dumps(chat.default_system)}) %}}"
                  "{% if messages[0].role == 'system' %}{% set ns.system = said(messages[0]) %}{% endif %}")
    system = f"{{% if ns.system %}}{_around(chat.system, '{{ ns.system }}')}{{% endif %}}" if chat.system else ""
    outside, inside = ("", f"{{% if not ns.last %}}{system}{{% endif %}}") if chat.system_inside else (system, "")
    between = f"{{% if ns.last == 'assistant' %}}{_literal(chat.after + chat.again)}{{% endif %}}"
    turns = {"user": between + _around(chat.user, inside + "{{ said(m) }}"),
             "assistant": _around(chat.open + chat.answer + chat.end.text, "{{ said(m) }}")}
    cases = [f"{{% {'elif' if i else 'if'} m.role == '{role}' %}}{turn}{{% set ns.last = m.role %}}"
             for i, (role, turn) in enumerate(turns.items())]
    return (text + set_system + _literal(chat.begin) + front + outside + "{% for m in messages %}" + "".join(cases)
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + _literal(chat.open) + "{% endif %}")


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""


def _around(form: str, inner: str) -> str:
    """A template's `form` with `inner` in the place of its text."""
    before, _, after = form.partition("{text}")
    return _literal(before) + inner + _literal(after)
