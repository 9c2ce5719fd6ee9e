"""CLIP's own tokenizer by its name: ids that OpenAI's code gives, and no text that becomes a special token."""

import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax.data import tokenizer as tokenizers
from vlm_jax.pretrained import processor_for
from vlm_jax.train import make_processor

BEGIN, END = 49406, 49407
# What OpenAI's tokenizer (github.com/openai/CLIP, simple_tokenizer.py) gives between begin and end.
OPENAI = {
    "Hello World!": [3306, 1002, 256],
    "a diagram": [320, 22697],
    "a dog": [320, 1929],
    "a cat": [320, 2368],
    "a photo of a cat.": [320, 1125, 539, 320, 2368, 269],
    "": [],
    "  multiple   spaces\tand\nnewline ": [6470, 9006, 537, 1218, 1148],
    "don't you're I'll we've": [847, 713, 592, 982, 328, 1342, 649, 1200],
    "12345": [272, 273, 274, 275, 276],
    "2021": [273, 271, 273, 272],
    "&amp;lt;b&amp;gt;": [283, 321, 285],
    "café": [15304],
    "猫": [163, 234, 360],
    "😀": [7334],
    "İstanbul": [328, 16384, 11231],
    "!!!": [995],
    "it's 50% off!!": [585, 568, 276, 271, 260, 1007, 748],
    "snake_case": [8798, 318, 2068],
    "a photo of a kite (bird of prey).": [320, 1125, 539, 320, 19867, 263, 3329, 539, 17131, 1818],
    "supercalifragilisticexpialidocious": [1642, 2857, 13093, 2076, 5868, 26850, 835, 639, 38466],
    # with ftfy installed, as its requirements ask
    "don’t “quote”": [847, 713, 257, 4020, 257],
    "ＡＢＣ １２３": [5334, 272, 273, 274],
    "ﬁ ligature": [3589, 19915, 4490],
    "ΟΔΟΣ οδος": [138, 123, 138, 112, 138, 123, 139, 480, 138, 123, 138, 112, 138, 123, 139, 480],
    "&amp; &lt;b&gt; &#39;": [261, 283, 321, 285, 262],
    "\ufeffbom": [19469],
    "control\x07bell": [9963, 3718],
}


@pytest.fixture(scope="module")
def clip():
    return tokenizers.load("clip")


@pytest.mark.parametrize("text", OPENAI)
def test_ids_are_those_of_openai(clip, text):
    assert clip.encode(text) == OPENAI[text]


def test_the_vocabulary_is_the_standard_one(clip):
    names = {"<|startoftext|>": BEGIN, "<|endoftext|>": END}
    assert len(clip) == 49408 and clip.special == {"<pad>": 0, "<s>": BEGIN, "</s>": END} | names
    assert clip.decode([BEGIN, *clip.encode("A photo of 2 cats."), END]) == "a photo of 2 cats ." and clip.decode([]) == ""


@pytest.mark.parametrize("text", ["<|endoftext|>", "a<|endoftext|>b", "<|STARTOFTEXT|>", "&lt;|endoftext|&gt;"])
def test_no_text_becomes_begin_or_end(clip, text):
    """OpenAI's tokenizer makes token 49407 of the first; text that ends a caption early can come from anyone."""
    assert clip.encode(text) and not {BEGIN, END} & set(clip.encode(text))


def run(**changes):
    """The config of a contrastive run with CLIP's tokenizer, as the command line would make it."""
    changes = {"model.text.vocab_size": 49408, "model.text.end_id": END, "model.text.context": 77} | changes
    overrides = [f"--config.{key}={value}" for key, value in ({"processor.tokenizer": "clip"} | changes).items()]
    return configs.resolve(configs.load("configs/clip_folder.py:somewhere", overrides))


def test_a_run_names_it_and_keeps_it_in_its_workdir(tmp_path):
    processor = make_processor(run(), tmp_path)
    again = make_processor(run(), tmp_path)  # from the workdir's tokenizer.json, cleaning included
    for text in OPENAI:
        wanted = np.zeros(77, np.int32)
        wanted[: len(OPENAI[text]) + 2] = [BEGIN, *OPENAI[text], END]
        np.testing.assert_array_equal(processor.text(text), wanted)
        np.testing.assert_array_equal(again.text(text), wanted)


def test_long_text_loses_its_tail_and_keeps_its_end(tmp_path):
    row = make_processor(run(), tmp_path).text("a photo of a dog " * 40)
    assert row.tolist() == [BEGIN, *([320, 1125, 539, 320, 1929] * 15), END]


def test_what_does_not_belong_together_is_refused(clip):
    with pytest.raises(ValueError, match="end_id is 2"):
        processor_for(run(**{"model.text.end_id": 2}), clip)
    chat = configs.resolve(configs.load("configs/quickstart.py", [
        "--config.model.text.vocab_size=49408", "--config.model.text.end_id=49407", "--config.model.decoder.vocab_size=49408"]))
    with pytest.raises(ValueError, match="no image token"):
        processor_for(chat, clip)
