"""Images written into prompts: each family's own way, on folders made here."""

import numpy as np
import pytest

from tests.data.huggingface.folders import assistant, picture, tokenizer_json, user, write
from vlm_jax.data.huggingface import loading

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
SQUASH = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 8, "width": 8}}


def processor(folder, kind, joined=(), pixels=(), special=SPECIAL, **tokens):
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | tokens
    return loading.load(write(
        folder, "{% for m in messages %}{{ m.role }}{% endfor %}", tokenizer=tokenizer_json(special, ("<s>", "$A")),
        tokenizer_config=tokens, config={"model_type": kind}, processor_config=dict(joined),
        preprocessor_config=SQUASH | dict(pixels)))


def rows(p, out):
    """Each row as text, padding and begin token written out."""
    return [p.decode(row) for row in out["input_ids"]]


def paligemma(folder):
    return processor(folder, "paligemma", pixels={"image_seq_length": 2})


def blip2(folder):
    return processor(folder, "blip-2", {"num_query_tokens": 3})


def test_paligemma_puts_its_images_in_front_and_a_newline_behind(tmp_path):
    p, images = paligemma(tmp_path), [[picture(8, 8)], [picture(8, 8), picture(8, 8)], []]
    wanted = ["<image>" * 2 + "<s>a b\n", "<image>" * 4 + "<s>c\n", "<pad>" * 4 + "<s>d\n"]
    out = p(text=["<image>a b", "<image><image>c", "d"], images=images)
    assert rows(p, out) == wanted and not out["token_type_ids"].any()
    assert rows(p, p(text=["a b", "c", "d"], images=images)) == wanted  # marks may be left out
    talk = [[user(None, "a "), assistant("b")], [user(None, "c", None)], [user("d")]]
    assert rows(p, p(messages=talk, images=images)) == wanted  # its words alone, whatever template lies there


def test_paligemma_learns_a_suffix(tmp_path):
    p = paligemma(tmp_path)
    out = p.training([[user(None, "a"), assistant("bc")], [user("a"), assistant("")]], [[picture(8, 8)], []])
    assert rows(p, out) == ["<image>" * 2 + "<s>a\nbc</s>", "<s>a\n</s>" + "<pad>" * 4]
    assert out["loss_mask"].tolist() == [[0] * 5 + [1] * 3, [0] * 3 + [1] + [0] * 4]
    np.testing.assert_array_equal(out["token_type_ids"], out["loss_mask"])  # what is learnt is what is causal
    with pytest.raises(ValueError, match="one question and its answer"):
        p.training([[user("a"), assistant("b"), user("c"), assistant("d")]])


def test_blip2_puts_its_queries_before_begin_token_and_padding(tmp_path):
    p, images = blip2(tmp_path), [[picture(8, 8)], [picture(8, 8)]]
    out = p(text=["a", "abc"], images=images)
    assert rows(p, out) == ["<image>" * 3 + "<pad>" * 2 + "<s>a", "<image>" * 3 + "<s>abc"]
    assert out["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 1, 1], [1] * 7]
    assert rows(p, p(text=["a", "abc"], images=images, padding_side="right"))[0] == "<image>" * 3 + "<s>a<pad><pad>"
    talk = [user(None, "Red?"), assistant("No."), user("Blue?")]
    assert rows(p, p(messages=[talk], images=images[:1])) == ["<image>" * 3 + "<s>Question: Blue? Answer:"]


def test_blip2_learns_an_answer(tmp_path):
    p = blip2(tmp_path)
    out = p.training([[user(None, "Red?"), assistant("No.")]], [[picture(8, 8)]])
    assert rows(p, out) == ["<image>" * 3 + "<s>Question: Red? Answer: No.</s>"]
    assert out["loss_mask"][0].sum() == len(" No.") + 1 and out["loss_mask"][0, -5:].all()
