"""Processors of published checkpoints, on folders made here: tokenizers, image geometry, chat templates, rows."""

import json

import numpy as np
import pytest
import tokenizers
from PIL import Image

from tests.data.huggingface.folders import spm
from vlm_jax.data.huggingface import images as hf_images, loading, sentencepiece
from vlm_jax.data.huggingface.template import ChatTemplate

TEMPLATE = """{% for m in messages %}{{ m.role | upper }}: {% if m.content is string %}{{ m.content }}{% else %}
{%- for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}
{{- eos_token if m.role == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
CROP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8},
        "crop_size": {"height": 8, "width": 8}}
RNG = np.random.default_rng(0)


def picture(height, width):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def tokenizer_json(post=("<s>", "$A")):
    """A byte-level tokenizer without merges: ids of plain text are those of its bytes."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE(
        {c: i for i, c in enumerate(SPECIAL + sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, []))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(SPECIAL)
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single=list(post), special_tokens=[(s, t.token_to_id(s)) for s in SPECIAL])
    t.enable_padding(length=40)  # some published files say so; it is for batches, not for a single text
    t.enable_truncation(4)
    return json.loads(t.to_str())


@pytest.fixture
def llava(tmp_path):
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>", "unk_token": None}
    write(tmp_path, tokenizer=tokenizer_json(), tokenizer_config=settings, preprocessor_config=CROP,
          config={"model_type": "llava", "image_token_index": 4, "vision_config": {"patch_size": 3}},
          processor_config={"processor_class": "LlavaProcessor", "patch_size": 3, "num_additional_image_tokens": 1,
                            "vision_feature_select_strategy": "default"})
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


# --- prompts with images


def ask(*parts):
    """One user turn; None stands for an image."""
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


def test_messages_become_the_rows_that_forward_takes(llava):
    """8 pixels make 2 x 2 patches of 3; each mark becomes four image tokens, short rows are padded on the left."""
    p = loading.load(llava)
    images = [[picture(9, 12)], [picture(8, 8), picture(30, 10)]]
    out = p(messages=[ask(None, "a"), ask("b", None, "c", None)], images=images)
    text = lambda s: p.tokenizer.tokenize(s, special=False)
    second = [1, *text("USER: b"), 4, 4, 4, 4, *text("c"), 4, 4, 4, 4, *text(" ASSISTANT:")]
    first = [1, *text("USER: "), 4, 4, 4, 4, *text("a ASSISTANT:")]
    pad = len(second) - len(first)
    assert out["input_ids"].tolist() == [[3] * pad + first, second]
    assert out["attention_mask"].tolist() == [[0] * pad + [1] * len(first), [1] * len(second)]
    assert out["pixel_values"].shape == (3, 3, 8, 8) and out["pixel_values"].dtype == np.float32
    prompts = ["USER: <image>a ASSISTANT:", "USER: b<image>c<image> ASSISTANT:"]
    same = p(text=prompts, images=images, padding_side="right")
    assert same["input_ids"].tolist() == [first + [3] * pad, second]


def test_marks_and_images_must_match(llava):
    p = loading.load(llava)
    with pytest.raises(ValueError, match="Prompt 1 has 2 <image> marks for 1 images"):
        p(text=["<image>", "<image> and <image>"], images=[[picture(8, 8)], [picture(8, 8)]])
    with pytest.raises(ValueError, match="2 prompts and 1 lists"):
        p(text=["a", "b"], images=[[]])
    with pytest.raises(ValueError, match="not both"):
        p(text=["a"], messages=[ask("a")])
    for single in ({"text": "a"}, {"messages": ask("a")}, {"text": ["<image>"], "images": [picture(8, 8)]}):
        with pytest.raises(ValueError, match="lists over the batch"):
            p(**single)


def test_a_template_that_writes_the_begin_token_gets_no_second_one(llava):
    (llava / "chat_template.jinja").write_text("{{ bos_token }}" + TEMPLATE)
    assert loading.load(llava)(messages=[ask("a")])["input_ids"][0].tolist().count(1) == 1


def test_the_template_of_a_language_model_is_taken_at_its_word(llava):
    for name in ("preprocessor_config.json", "processor_config.json", "config.json"):
        (llava / name).unlink()
    p = loading.load(llava)
    assert p(messages=[ask("a")])["input_ids"][0, 0] != 1 and p(text=["a"])["input_ids"][0, 0] == 1
    with pytest.raises(ValueError, match="no image processor"):
        p.images([picture(8, 8)])


# --- two towers


@pytest.mark.parametrize("kind, ids, mask", [
    ("clip", [[1, 5, 2, 2], [1, 6, 7, 2]], [[1, 1, 1, 0], [1, 1, 1, 1]]),
    ("siglip", [[1, 5, 2, 3, 3], [1, 6, 7, 2, 3]], None)])
def test_rows_of_text_towers(tmp_path, kind, ids, mask):
    """CLIP pads to the longest and masks, SigLIP fills its whole context without a mask; both on the right."""
    pad = {"clip": "</s>", "siglip": "<pad>"}[kind]
    letter = tokenizer_json(("<s>", "$A", "</s>"))
    write(tmp_path, tokenizer=letter, tokenizer_config={"pad_token": pad, "eos_token": "</s>"},
          config={"model_type": kind, "text_config": {"max_position_embeddings": 5}}, preprocessor_config=CROP)
    p = loading.load(tmp_path)
    shift = lambda row: "".join(chr(ord("!") + i - 5) for i in row if i > 4)  # byte "!" has id 5
    out = p(text=[shift(row) for row in ids], images=[[picture(8, 8)]])
    assert out["input_ids"].tolist() == ids and out["pixel_values"].shape == (1, 3, 8, 8)
    assert ("attention_mask" in out and out["attention_mask"].tolist()) == (mask or False)
    long = p(text=["!" * 9])["input_ids"]
    assert long.tolist() == [[1, 5, 5, 5, 2]]  # the tail goes, the end stays


# --- tokenizers


def test_tokenize_adds_what_the_file_says_and_decode_shows_it(llava):
    p = loading.load(llava)
    assert p.tokenize("hello")[0] == 1 and len(p.tokenize("hello")) == 6
    assert p.decode(p.tokenize("héllo")) == "<s>héllo" and p.decode(p.tokenize("héllo"), True) == "héllo"
    assert p.tokenize("a</s>b")[2] == 2  # as in transformers, written-out special tokens are special


def test_tokens_that_stand_beside_the_tokenizer(tmp_path):
    """Added tokens in the order of their ids, then those that only have a name; what tokenizer.json puts around a text
    stands, whatever else is said."""
    write(tmp_path, tokenizer=tokenizer_json(), tokenizer_config={
        "bos_token": "<s>", "image_token": "<named>", "add_bos_token": False, "add_eos_token": True,
        "added_tokens_decoder": {"262": {"content": "<b>", "rstrip": True}, "261": {"content": "<a>", "special": True}}})
    p = loading.load(tmp_path)
    assert p.tokenize("<named><a><b>  ") == [1, 263, 261, 262]
    assert p.decode([1, 261, 262], skip_special_tokens=True) == "<b>"


def test_siglip2_reads_lower_case(tmp_path):
    """It was trained so; the tokenizer files of its first checkpoints do not say it."""
    write(tmp_path, tokenizer=tokenizer_json(), tokenizer_config={"bos_token": "<s>", "pad_token": "<pad>"},
          config={"model_type": "siglip2", "text_config": {"max_position_embeddings": 6}})
    p = loading.load(tmp_path)
    assert p.tokenize("A b") == p.tokenize("a b")
    assert p.decode(p(text=["A"])["input_ids"][0]) == "<s>a" + "<pad>" * 4


def test_clip_from_its_two_original_files(tmp_path):
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    write(tmp_path, vocab={word: i for i, word in enumerate(words)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    p = loading.load(tmp_path)
    assert p.tokenize("AB  a!") == [6, 4, 2, 5, 7] and p.decode([6, 4, 2, 5, 7], True) == "ab a !"


CONTROL = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]


def test_sentencepiece_bpe_merges_best_score_first(tmp_path):
    """"abc" may become a+bc or ab+c; bc has the better score. A letter out of the vocabulary becomes bytes."""
    pieces = CONTROL + [(f"<0x{b:02X}>", 0, 6) for b in range(256)]
    pieces += [("bc", -1, 1), ("ab", -2, 1), ("\u2581", -3, 1), ("a", -4, 1), ("b", -5, 1), ("c", -6, 1)]
    (tmp_path / "tokenizer.model").write_bytes(spm(pieces, sentencepiece.BPE, byte_fallback=1))
    p = loading.load(tmp_path)
    n = len(CONTROL) + 256
    assert p.tokenize("abc") == [n + 2, n + 3, n] and p.tokenize("") == []
    assert p.tokenize("é") == [n + 2, 3 + 0xC3, 3 + 0xA9] and p.decode(p.tokenize("é a")) == "é a"
    assert p.decode([1, *p.tokenize("abc"), 2]) == "abc"
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "tokenizer_class": "LlamaTokenizer"},
          added_tokens={"<image>": len(pieces)})
    p = loading.load(tmp_path)  # with a config it is transformers' class: begins texts, knows added tokens
    assert p.tokenize("abc") == [1, n + 2, n + 3, n] and p.tokenize("<image>") == [1, len(pieces)]


def test_sentencepiece_unigram_takes_the_likeliest_and_fuses_unknowns(tmp_path):
    pieces = CONTROL + [("\u2581a", -1, 1), ("\u2581", -2, 1), ("a", -2, 1), ("<", -2, 1), ("s", -2, 1), (">", -2, 1)]
    (tmp_path / "tokenizer.model").write_bytes(spm(pieces, sentencepiece.UNIGRAM))
    p = loading.load(tmp_path)
    assert p.tokenize("a") == [3] and p.tokenize("<s>") == [4, 6, 7, 8]  # no text becomes a control id
    assert p.tokenize("éüa") == [4, 0, 5] and p.decode([4, 0, 5]) == " \u2047 a"


def test_a_broken_sentencepiece_file_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="no sentencepiece model"):
        loading.load(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a tokenizer nor"):
        loading.load(tmp_path)


# --- images


def fit(image, **config):
    return hf_images.from_config(config).fit(image)


@pytest.mark.parametrize("height, width, scaled", [
    (17, 40, (8, 18)), (40, 17, (18, 8)), (8, 9, (8, 9)), (3, 2, (12, 8))])
def test_clip_scales_the_shorter_side_and_cuts_the_middle(height, width, scaled):
    image = picture(height, width)
    whole = np.asarray(image.resize(scaled[::-1], Image.Resampling.BICUBIC))
    top, left = (scaled[0] - 8) // 2, (scaled[1] - 8) // 2
    np.testing.assert_array_equal(fit(image, **CROP), whole[top : top + 8, left : left + 8])
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 8, "crop_size": 8}  # as the first files write it
    np.testing.assert_array_equal(fit(image, **old), whole[top : top + 8, left : left + 8])


def test_siglip_squashes_and_llava_pads():
    image = picture(6, 13)
    squashed = fit(image, image_processor_type="SiglipImageProcessorFast", size={"height": 5, "width": 7}, resample=2)
    np.testing.assert_array_equal(squashed, np.asarray(image.resize((7, 5), Image.Resampling.BILINEAR)))
    padded = fit(image, **CROP | {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_resize": False,
                                  "do_center_crop": False, "image_mean": [0.5, 0.25, 0.125]})
    assert padded.shape == (13, 13, 3) and (padded[:3] == [127, 63, 31]).all()
    np.testing.assert_array_equal(padded[3:9], np.asarray(image))


def test_a_crop_larger_than_the_image_is_black_around_it():
    image = picture(3, 8)
    cropped = fit(image, **CROP | {"do_resize": False})
    np.testing.assert_array_equal(cropped[3:6], np.asarray(image))
    assert not cropped[:3].any() and not cropped[6:].any()


def test_values_are_rescaled_and_normalised_where_asked():
    image, plain = picture(8, 8), {"do_rescale": False, "do_normalize": False}
    pixels = hf_images.from_config(CROP | plain)([image])["pixel_values"]
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 3, 8, 8)  # as transformers leaves them
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), np.asarray(image))
    pixels = hf_images.from_config(CROP | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 2]})([image])["pixel_values"]
    wanted = (np.asarray(image) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2]
    np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), wanted, atol=1e-5)


def test_transparent_and_gray_images_become_rgb():
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (fit(clear, **CROP) == 255).all() and (fit(Image.new("L", (8, 8), 7), **CROP) == 7).all()


def test_unknown_processors_and_unequal_sizes_are_refused():
    with pytest.raises(ValueError, match="FuyuImageProcessor is not supported; known are CLIP, "):
        hf_images.from_config({"image_processor_type": "FuyuImageProcessor"})
    with pytest.raises(ValueError, match="one size"):
        hf_images.from_config(CROP | {"do_resize": False, "do_center_crop": False})([picture(3, 3), picture(4, 4)])


# --- templates


def test_templates_have_the_helpers_that_published_ones_call():
    source = ("{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m | tojson }}"
              "{% endgeneration %}{% endfor %}{{ strftime_now('%Y') | length }}{{ bos_token }}{{ x }}{{ tools is none }}")
    text = ChatTemplate(source, {"bos_token": "<s>"}).render([{"a": "é<"}, {}], x=1)
    assert text == '{"a": "é<"}4<s>1True'


def test_a_template_sees_plain_data_only(tmp_path):
    """An image's `save` would write a file of the template's choosing."""
    image = {"type": "image", "image": picture(8, 8)}
    show = ChatTemplate("{{ messages[0].content[0].image }}{{ 'name' in messages[0] }}", {})
    assert show.render([{"role": "user", "content": [image], "name": None}]) == "<Image>False"
    write_file = ChatTemplate(f"{{{{ messages[0].content[0].image.save('{tmp_path}/a.png') }}}}", {})
    with pytest.raises(ValueError, match="refuses"):
        write_file.render([{"role": "user", "content": [image]}])
    assert not list(tmp_path.iterdir())
    compact = "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}"
    assert ChatTemplate(compact, {}).render([{"b": 1, "a": "é"}]) == '{"a":"é","b":1}'


@pytest.mark.parametrize("source", [
    "{{ raise_exception('roles must alternate') }}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_templates_may_refuse_and_cannot_escape(source):
    with pytest.raises(ValueError, match="refuses these messages"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "a"}])


PARTS = """{% for m in messages %}{{ m.role | upper }}: {% for c in m.content | selectattr('type', 'equalto', 'text') %}
{{- c.text }} {% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def test_a_template_that_only_reads_parts_does_not_lose_what_is_said(llava):
    (llava / "chat_template.jinja").write_text(PARTS)
    p, plain = loading.load(llava), {"role": "assistant", "content": "It is.\nYes."}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Red?"}]}]
    assert p.chat(parts) == "USER: Red? ASSISTANT:"
    with pytest.raises(ValueError, match="The chat template leaves out what message 0 says; give its content as"):
        p(messages=[[{"role": "user", "content": "Red?"}]])
    with pytest.raises(ValueError, match="leaves out what message 1 says"):
        p.training([[*parts, plain]])
    assert p.training([[*parts, plain | {"content": [{"type": "text", "text": "Yes."}]}]])["loss_mask"].sum() > 2


@pytest.mark.parametrize("name, content", [
    ("chat_template", {"chat_template": "old {{ messages[0].content }}"}),
    ("tokenizer_config", {"chat_template": [{"name": "tool", "template": "x"},
                                            {"name": "default", "template": "old {{ messages[0].content }}"}]})])
def test_older_places_of_the_template(llava, name, content):
    (llava / "chat_template.jinja").unlink()
    write(llava, **{name: content})
    assert loading.load(llava).chat([{"role": "user", "content": "a"}]) == "old a"
