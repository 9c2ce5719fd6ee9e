"""Images written into prompts: each family's own way, on folders made here."""

import numpy as np
import pytest

from tests.data.huggingface.folders import assistant, picture, tokenizer_json, user, write
from vlm_jax.data.huggingface import loading

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<boi>", "<eoi>", "<soft>", "<ctx>", "<img>", "</img>"]
SIZE = {"size": {"height": 8, "width": 8}}
SQUASH = SIZE | {"image_processor_type": "SiglipImageProcessor"}


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
    assert rows(p, p(text=["a<image>bc"], images=images[:1])) == ["<image>" * 3 + "<s>abc"]  # a mark is not needed
    talk = [user(None, "Red?"), assistant("No."), user("Blue?")]
    assert rows(p, p(messages=[talk], images=images[:1])) == ["<image>" * 3 + "<s>Question: Blue? Answer:"]


def test_blip2_learns_an_answer(tmp_path):
    p = blip2(tmp_path)
    out = p.training([[user(None, "Red?"), assistant("No.")]], [[picture(8, 8)]])
    assert rows(p, out) == ["<image>" * 3 + "<s>Question: Red? Answer: No.</s>"]
    assert out["loss_mask"][0].sum() == len(" No.") + 1 and out["loss_mask"][0, -5:].all()


PINPOINTS = SIZE | {"crop_size": 8, "image_grid_pinpoints": [[8, 16], [16, 8]]}
LONG, SQUARE = (16, 8), (8, 8)  # width, height


def tiles(kind, folder, joined, pixels, **tokens):
    name = {"image_processor_type": f"{pixels['kind']}ImageProcessor"}
    return processor(folder, kind, joined, pixels | name, **tokens)


@pytest.mark.parametrize("kind", ["paligemma", "blip-2"])
def test_single_questions_alone_are_learnt_and_need_an_end(tmp_path, kind):
    more = {"joined": {"num_query_tokens": 3}, "pixels": {"image_seq_length": 2}}
    p = processor(tmp_path, kind, **more)
    with pytest.raises(ValueError, match="learns one question and its answer"):
        p.training(messages=[[user("a"), assistant("b"), user("c")]], images=[[]])
    p = processor(tmp_path, kind, eos_token=None, **more)
    with pytest.raises(ValueError, match="no eos_token to end an answer"):
        p.training(messages=[[user("a"), assistant("b")]], images=[[]])


def test_blip2_answers_a_user(tmp_path):
    with pytest.raises(ValueError, match="answers a user's question"):
        blip2(tmp_path)(messages=[[assistant("b")]], images=[[picture(8, 8)]])


def test_llava_next_ends_each_row_of_its_canvas_with_a_newline(tmp_path):
    """2 x 2 tokens a tile. Of 16 x 8 pixels: the whole, 4; and two tiles, 2 rows of 4 and a newline. Of 4 x 8 pixels,
    in the middle of the same canvas, two columns are shown."""
    p = tiles("llava_next", tmp_path, {"patch_size": 4, "vision_feature_select_strategy": "default",
                                       "num_additional_image_tokens": 1}, PINPOINTS | {"kind": "LlavaNext"})
    out = p(text=["<image>a<image>"], images=[[picture(*LONG), picture(4, 8)]])
    assert rows(p, out) == ["<s>" + "<image>" * (4 + 2 * 5) + "a" + "<image>" * (4 + 2 * 3)]
    assert out["pixel_values"].shape == (2, 3, 3, 8, 8) and out["image_sizes"].tolist() == [[8, 16], [8, 4]]
    full = tiles("llava_next", tmp_path, {"patch_size": 4, "vision_feature_select_strategy": "full",
                                          "num_additional_image_tokens": 1}, PINPOINTS | {"kind": "LlavaNext"})
    assert len(full.marks.written([LONG])[0]) == len("<image>") * (1 + 4 + 2 * 5)  # with the class token


def test_llava_onevision_shrinks_and_tiles_a_single_image_alone(tmp_path):
    """2 x 4 tokens are over 1.21 tiles: both sides go down by the root of 2, to 1 x 2."""
    p = tiles("llava_onevision", tmp_path, {"num_image_tokens": 4, "vision_aspect_ratio": "anyres_max_1"},
              PINPOINTS | {"kind": "LlavaOnevision"})
    images = [[picture(*LONG)], [picture(*LONG), picture(*SQUARE)]]
    out = p(text=["<image>", "<image><image>"], images=images, padding_side="right")
    one, two = "<s>" + "<image>" * (4 + 1 * 3), "<s>" + "<image>" * 2 * (4 + 1)
    assert rows(p, out) == [one + "<pad>" * 3, two]
    assert out["batch_num_images"].tolist() == [1, 2]


def test_internvl_always_tiles_what_it_is_asked_about(tmp_path):
    """As in transformers, whatever its image steps do by themselves."""
    pixels = {"kind": "GotOcr2", "crop_to_patches": False, "max_patches": 2} | SIZE
    p = tiles("internvl", tmp_path, {"image_seq_length": 2}, pixels, context_image_token="<ctx>")
    out = p(text=["a<ctx>b<ctx>"], images=[[picture(*LONG), picture(*SQUARE)]])
    assert rows(p, out) == ["<s>a<img>" + "<ctx>" * 2 * 3 + "</img>b<img>" + "<ctx>" * 2 + "</img>"]
    assert out["pixel_values"].shape == (4, 3, 8, 8) and set(out) == {"input_ids", "attention_mask", "pixel_values"}


GEMMA = {"boi_token": "<boi>", "eoi_token": "<eoi>", "extra_special_tokens": {"image_token": "<soft>"}}
ONE = "\n\n<boi>" + "<soft>" * 3 + "<eoi>\n\n"


def test_gemma3_sets_its_soft_tokens_between_blank_lines(tmp_path):
    p = tiles("gemma3", tmp_path, {"image_seq_length": 3}, {"kind": "Gemma3"} | SIZE, **GEMMA)
    out = p(text=["a<boi>b", "c"], images=[[picture(*LONG)], []])
    assert rows(p, out)[0] == f"<s>a{ONE}b"
    soft = p.tokenizer.backend.token_to_id("<soft>")
    np.testing.assert_array_equal(out["token_type_ids"], out["input_ids"] == soft)
    assert out["token_type_ids"].sum() == 3


def test_gemma3_names_the_crops_of_a_long_image(tmp_path):
    pixels = {"kind": "Gemma3", "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 4} | SIZE
    p = tiles("gemma3", tmp_path, {"image_seq_length": 3}, pixels, **GEMMA)
    out = p(text=["<boi>", "<boi>"], images=[[picture(*LONG)], [picture(*SQUARE)]], padding_side="right")
    assert rows(p, out)[0] == (f"<s>Here is the original image {ONE} and here are some crops to help you see better "
                               f"{ONE} {ONE}")
    assert rows(p, out)[1].startswith(f"<s>{ONE}<pad>") and out["pixel_values"].shape == (4, 3, 8, 8)


def test_qwen_vl_takes_a_token_for_each_merged_square(tmp_path):
    pixels = {"kind": "Qwen2VL", "patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 16, "longest_edge": 999}}
    p = tiles("qwen2_5_vl", tmp_path, {}, pixels, image_token="<image>")
    out = p(text=["a<image>", "b"], images=[[picture(*LONG)], []])
    assert rows(p, out)[0] == "<s>a" + "<image>" * 8 and out["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert out["mm_token_type_ids"].tolist() == [[0] * 2 + [1] * 8, [0] * 10]
    (tmp_path / "config.json").unlink()
    write(tmp_path, processor_config={"processor_class": "Qwen2_5_VLProcessor"})
    assert rows(p, loading.load(tmp_path)(text=["<image>"], images=[[picture(*LONG)]])) == ["<s>" + "<image>" * 8]


@pytest.mark.parametrize("kind", ["Idefics3", "SmolVLM"])
def test_idefics_says_where_each_tile_is(tmp_path, kind):
    pixels = {"kind": kind, "size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 8}}
    names = {"fake_image_token": "<boi>", "global_image_token": "<eoi>"}
    p = tiles(kind.lower(), tmp_path, {"image_seq_len": 2}, pixels, **names)
    i = "<image>" * 2
    long = f"<boi><row_1_col_1>{i}<boi><row_1_col_2>{i}\n\n<boi><eoi>{i}<boi>"
    out = p(text=["a<image>", "<image><image>"], images=[[picture(*LONG)], [picture(*LONG), picture(16, 4)]])
    assert rows(p, out)[0].endswith(f"<s>a{long}") and rows(p, out)[1] == f"<s>{long}{long}"
    assert out["pixel_values"].shape == (2, 6, 3, 8, 8) and out["pixel_attention_mask"][0, 3:].max() == 0
    whole = tiles(kind.lower(), tmp_path, {"image_seq_len": 2}, pixels | {"kind": kind, "do_image_splitting": False})
    assert rows(whole, whole(text=["<image>"], images=[[picture(*LONG)]]))[0] == (
        f"<s><fake_token_around_image><global-img>{i}<fake_token_around_image>")


def test_a_model_needs_the_image_steps_of_its_kind(tmp_path):
    with pytest.raises(ValueError, match="no FixedSize steps; give the folder the preprocessor_config.json of its own"):
        processor(tmp_path, "llava_next", {"patch_size": 4})
    with pytest.raises(ValueError, match="is not told; set num_query_tokens"):
        processor(tmp_path, "blip-2")


def test_the_image_token_is_added_where_the_tokenizer_lacks_it_and_must_be_the_models(tmp_path):
    plain = [token for token in SPECIAL if token != "<image>"]
    p = processor(tmp_path, "blip-2", {"num_query_tokens": 3}, special=plain)
    number = p.tokenizer.backend.token_to_id("<image>")
    assert number == len(plain) + 256
    write(tmp_path, config={"model_type": "blip-2", "image_token_index": number})
    assert loading.load(tmp_path)(text=["a"], images=[[picture(8, 8)]])["input_ids"][0, :3].tolist() == [number] * 3
    write(tmp_path, tokenizer_config={"image_token": "<image>"},
          config={"model_type": "blip-2", "image_token_index": 7})
    with pytest.raises(ValueError, match="token is 7 in config.json, but <image> is"):
        loading.load(tmp_path)
