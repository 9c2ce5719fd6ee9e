"""Conversations to learn from: what is learnt is what the assistant says and the token that ends it, nothing else."""

import numpy as np
import pytest

from tests.data.huggingface.folders import assistant, picture, tokenizer_json, user, write
from vlm_jax.data.huggingface import loading

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
           "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SAID = ("{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}")


def turns(user, assistant, prompt=""):
    """A template of what it writes of each turn (m.content as SAID), and of the generation prompt."""
    each = f"{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}{{% endif %}}".replace("SAID", SAID)
    return f"{{% for m in messages %}}{each}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


CHATML = turns("<|im_start|>user\nSAID<|im_end|>\n", "<|im_start|>assistant\nSAID<|im_end|>\n",
               "<|im_start|>assistant\n")
TEMPLATES = {  # name: template, eos token, what ends an answer, what stands between prompt and answer
    "chatml": (CHATML, "<|im_end|>", "<|im_end|>", ""),
    "llama 2": (turns("<s>[INST] SAID [/INST]", " SAID </s>"), "</s>", " </s>", " "),
    "llama 3": ("<s>" + turns(*(f"<|start_header_id|>{role}<|end_header_id|>\n\nSAID<|eot_id|>"
                                for role in ("user", "assistant")),
                              "<|start_header_id|>assistant<|end_header_id|>\n\n"), "<|eot_id|>", "<|eot_id|>", ""),
    "vicuna": (turns("USER: SAID ", "ASSISTANT: SAID{{ eos_token }}", "ASSISTANT:"), "</s>", "</s>", " "),
    "gemma": ("{{ bos_token }}" + turns(
        "<start_of_turn>user\nSAID<end_of_turn>\n", "<start_of_turn>model\nSAID<end_of_turn>\n",
        "<start_of_turn>model\n"), "</s>", "<end_of_turn>", ""),
    "mistral": ("{{ bos_token }}" + turns("[INST] SAID [/INST]", " {{ m.content | trim }}{{ eos_token }}"),
                "</s>", "</s>", " "),
    "no end token": (turns("user: SAID\n", "assistant: SAID\n", "assistant: "), "</s>", "</s>", ""),
    "blocks and no end token": (
        turns("USER: SAID ", "ASSISTANT: {% generation %}SAID {% endgeneration %}", "ASSISTANT:"), "</s>", "</s>", ""),
    "blocks before it": (turns("<|im_start|>SAID", "{% generation %}SAID{% endgeneration %}<|im_end|>"),
                         "</s>", "<|im_end|>", ""),
    "blocks around it": (turns("<|im_start|>SAID", "{% generation %}SAID<|im_end|>\n{% endgeneration %}"),
                         "</s>", "<|im_end|>", ""),
}
TALK = [user(None, "Red?"), assistant("No, it's blue."), user("And ", None, " this?"), assistant("Red, 東.")]


def processor(folder, template, eos="</s>", **tokenizer):
    """LLaVA's: 16 patches make 16 image tokens."""
    write(folder, template, tokenizer=tokenizer_json(SPECIAL, ("<s>", "$A"), **tokenizer),
          tokenizer_config={"bos_token": "<s>", "eos_token": eos, "pad_token": "<pad>", "image_token": "<image>"},
          config={"model_type": "llava"},
          preprocessor_config={"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8},
                               "crop_size": {"height": 8, "width": 8}},
          processor_config={"patch_size": 2, "num_additional_image_tokens": 1,
                            "vision_feature_select_strategy": "default"})
    return loading.load(folder)


def learnt(p, out, row=0):
    """The learnt stretches of a row, as text."""
    ids, mask = out["input_ids"][row], out["loss_mask"][row]
    cuts = np.flatnonzero(np.diff(mask, prepend=0)).tolist()
    starts = [at for at in cuts if mask[at]]
    return [p.decode([i for i, m in zip(ids[at:], np.cumprod(mask[at:])) if m]) for at in starts]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_end_tokens_are_learnt_and_nothing_else(tmp_path, name):
    template, eos, end, gap = TEMPLATES[name]
    p = processor(tmp_path, template, eos)
    out = p.training([TALK, TALK[:2]], [[picture(8, 8)] * 2, [picture(8, 8)]])
    answers = [f"{gap}No, it's blue.{end}", f"{gap}Red, 東.{end}"]
    assert learnt(p, out) == answers and learnt(p, out, 1) == answers[:1]
    assert out["pixel_values"].shape == (3, 3, 8, 8)
    image = p.tokenizer.backend.token_to_id("<image>")
    assert (out["input_ids"] == image).sum(axis=1).tolist() == [32, 16]
    assert not out["loss_mask"][(out["input_ids"] == image) | (out["attention_mask"] == 0)].any()


@pytest.mark.parametrize("name", ["chatml", "vicuna", "gemma", "llama 3", "mistral", "llama 2"])
def test_a_row_begins_with_the_prompt_that_the_model_will_be_given(tmp_path, name):
    template, eos, _, _ = TEMPLATES[name]
    p = processor(tmp_path, template, eos)
    prompt = p(messages=[TALK[:1]], images=[[picture(8, 8)]])["input_ids"][0]
    out = p.training([TALK[:2]], [[picture(8, 8)]])
    np.testing.assert_array_equal(out["input_ids"][0, : len(prompt)], prompt)
    assert not out["loss_mask"][0, : len(prompt)].any() and out["loss_mask"][0, len(prompt)] == 1


def test_an_image_that_the_assistant_shows_is_not_learnt(tmp_path):
    p = processor(tmp_path, CHATML, "<|im_end|>")
    shows = {"role": "assistant", "content": [{"type": "text", "text": "See "}, {"type": "image"},
                                              {"type": "text", "text": " there."}]}
    out = p.training([[user("Where?"), shows]], [[picture(8, 8)]])
    assert learnt(p, out) == ["See ", " there.<|im_end|>"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_side_asked_for(tmp_path, side):
    p = processor(tmp_path, CHATML, "<|im_end|>")
    out = p.training([TALK, [user("Hi."), assistant("Hello.")]], [[picture(8, 8)] * 2, []], padding_side=side)
    assert out["attention_mask"][1, 0 if side == "left" else -1] == 0
    assert learnt(p, out, 1) == ["Hello.<|im_end|>"]


def test_a_token_that_joins_prompt_and_answer_is_not_learnt(tmp_path):
    """ ":N" is one token: half of it is the prompt's. A blank of the prompt's does not keep a word back."""
    joined = processor(tmp_path, "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
                       "{% if add_generation_prompt %}assistant:{% endif %}", merges=[(":", "N")])
    talk = [{"role": "user", "content": "Red?"}, assistant("No.")]
    assert learnt(joined, joined.training([talk])) == ["o.</s>"]
    spaced = processor(tmp_path, "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
                       "{% if add_generation_prompt %}assistant: {% endif %}", merges=[("Ġ", "N")])
    assert learnt(spaced, spaced.training([talk])) == [" No.</s>"]


def test_a_template_that_does_not_tell_its_answers_is_refused(tmp_path):
    """It says less of what is long past, as templates of models that think aloud do."""
    forgetful = CHATML.replace("<|im_start|>assistant", "<|im_start|>assistant{{ '' if loop.last else ' of old' }}", 1)
    p = processor(tmp_path, forgetful)
    with pytest.raises(ValueError, match="not write turn after turn.*generation"):
        p.training([TALK], [[picture(8, 8)] * 2])
    assert learnt(p, p.training([TALK[:2]], [[picture(8, 8)]])) == ["No, it's blue.<|im_end|>"]  # of one answer it does


def test_without_any_end_token_a_conversation_is_refused(tmp_path):
    p = processor(tmp_path, TEMPLATES["no end token"][0], eos=None)
    with pytest.raises(ValueError, match="no token that ends an answer"):
        p.training([TALK[:2]], [[picture(8, 8)]])


@pytest.mark.parametrize("talk", [
    [user("a"), assistant("b<|im_end|>c")], [user("a</s>"), assistant("b")], [user("a"), assistant("<image>")]])
def test_messages_that_spell_special_tokens_are_refused(tmp_path, talk):
    with pytest.raises(ValueError, match="Conversation 1 spells the special token"):
        processor(tmp_path, CHATML).training([TALK[:2], talk], [[picture(8, 8)], []])


def test_blocks_do_not_show_in_prompts_and_what_they_set_is_known_behind_them(tmp_path):
    p = processor(tmp_path, "{% generation %}{% set x = messages[0].content %}{{ x }}{% endgeneration %}{{ x }}")
    assert p.chat([{"role": "user", "content": "a"}]) == "aa"
