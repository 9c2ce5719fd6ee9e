"""Prompts with images become the arrays that transformers' processors give (tests/fixtures/make_prompts.py)."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.data.huggingface.folders import write
from vlm_jax.data.huggingface import loading

STORED = np.load(pathlib.Path(__file__).parents[2] / "fixtures" / "prompts.npz")
NAMES = [key.removesuffix("/files") for key in STORED if key.endswith("/files")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_transformers(tmp_path, name, side):
    files = json.loads(str(STORED[f"{name}/files"]))
    write(tmp_path, **files | {"tokenizer": json.loads(str(STORED["tokenizer"])) | files["tokenizer"]})
    prompts = json.loads(str(STORED[f"{name}/{side}/prompts"]))
    out = loading.load(tmp_path)(text=[text for text, _ in prompts], padding_side=side,
                                 images=[[Image.new("RGB", size) for size in sizes] for _, sizes in prompts])
    wanted = {key.split("/")[3]: STORED[key] for key in STORED if key.startswith(f"{name}/{side}/out/")}
    assert {key for key in out if not key.startswith("pixel")} == set(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(out[key], value)
        assert out[key].dtype == value.dtype
