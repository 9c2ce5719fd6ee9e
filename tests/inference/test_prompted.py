"""Conversations with published checkpoints: what each turn asks of the model, and what becomes of its answer."""

import numpy as np

from tests.data.huggingface.folders import picture, tokenizer_json, write
from vlm_jax.data.huggingface import loading
from vlm_jax.inference.prompted import PromptedSession

SPECIAL = ["</s>", "<image>", "<pad>"]
PARTS = ("{% for m in messages %}{{ m.role }}:{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}"
         "{% endfor %};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}")
STRINGS = PARTS.replace("{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}",
                        "{{ m.content.strip() }}")


def opened(folder, template, images, answers, **files):
    """A session whose model says `answers`, each followed by its end token and filling; and the inputs it was given."""
    write(folder, template, tokenizer=tokenizer_json(SPECIAL),
          tokenizer_config={"eos_token": "</s>", "pad_token": "<pad>"}, **files)
    p, given = loading.load(folder), []

    def generate(**inputs):
        given.append(inputs)
        return np.array([[*p.tokenize(answers[len(given) - 1]), 0, *p.tokenize("more")]])
    return PromptedSession(generate, p, [0], images, seed=7), p, given


def test_each_turn_reads_the_whole_conversation_and_its_images(tmp_path):
    side = {"height": 4, "width": 4}
    session, p, given = opened(
        tmp_path, PARTS, [np.asarray(picture(9, 5))], [" Red. ", "No."],
        config={"model_type": "llava", "image_token_index": 1, "vision_config": {"patch_size": 4}},
        processor_config={"patch_size": 4, "num_additional_image_tokens": 1},
        preprocessor_config={"size": {"shortest_edge": 4}, "crop_size": side})
    assert [session.ask("Colour?"), session.ask("Blue?")] == ["Red.", "No."]
    rows = [p.decode(inputs["input_ids"][0]) for inputs in given]
    assert rows == ["user:<image>Colour?;assistant:",
                    "user:<image>Colour?;assistant:Red.;user:Blue?;assistant:"]
    assert [inputs["pixel_values"].shape for inputs in given] == [(1, 3, 4, 4)] * 2
    assert given[0]["seed"] != given[1]["seed"]


def test_templates_of_language_models_are_given_strings(tmp_path):
    session, p, given = opened(tmp_path, STRINGS, [], ["4"])
    assert session.ask("2 + 2?") == "4"
    assert p.decode(given[0]["input_ids"][0]) == "user:2 + 2?;assistant:" and "pixel_values" not in given[0]
