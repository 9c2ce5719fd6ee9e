"""The folders are made here: small images whose colour tells which one was read."""

import csv
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.records import Message
from vlm_jax.data.sources.captions import CaptionFolderConfig, CaptionFolderSource
from vlm_jax.data.sources.entries import held_out
from vlm_jax.data.sources.llava import LlavaJsonConfig, LlavaJsonSource


def save_image(folder, name: str, value: int, size=(4, 3)) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def write_captions(folder, rows, form="jsonl") -> None:
    if form == "jsonl":
        text = "".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in rows)
        (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    else:
        with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *rows])


def captions(folder, **config) -> CaptionFolderSource:
    return CaptionFolderSource(CaptionFolderConfig(str(folder), **{"split": "all", **config}))


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def llava(folder, entries, name="data.json", **config) -> LlavaJsonSource:
    lines = name.endswith(".jsonl")
    (folder / name).write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    return LlavaJsonSource(LlavaJsonConfig(str(folder / name), **{"split": "all", **config}))


# --- a folder of captioned images ---


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_caption_folder_round_trips(tmp_path, form):
    rows = [("a.png", "A cat, asleep."), ("deep/b.jpg", 'Ein "Hund",\nläuft.'), ("a.png", "The same cat.")]
    save_image(tmp_path, "a.png", 10)
    save_image(tmp_path, "deep/b.jpg", 200)
    write_captions(tmp_path, rows, form)
    source = captions(tmp_path)
    assert len(source) == 3
    assert [record.caption for record in source] == [caption for _, caption in rows]
    assert [record.meta["image"] for record in source] == ["a.png", "deep/b.jpg", "a.png"]
    # In the CSV the header is line 1, and the caption of line 3 goes on in line 4.
    assert [record.meta["line"] for record in source] == ([1, 2, 3] if form == "jsonl" else [2, 3, 5])
    first = source[0]
    assert len(first.images) == 1 and first.images[0].shape == (3, 4, 3) and first.images[0].dtype == np.uint8
    assert (first.images[0] == [10, 0, 245]).all()
    assert np.abs(source[1].images[0].astype(int) - [200, 0, 55]).max() <= 3
    user, assistant = Message("user", "<image>\nDescribe the image."), Message("assistant", "A cat, asleep.")
    assert first.conversations == ((user, assistant),)
    assert source[-1].caption == "The same cat."
    with pytest.raises(IndexError):
        source[3]


def test_prompt_may_be_changed_or_left_out(tmp_path):
    save_image(tmp_path, "a.png", 1)
    write_captions(tmp_path, [("a.png", "A cat.")])
    assert captions(tmp_path, prompt="What is it?")[0].conversations[0][0].text == "<image>\nWhat is it?"
    record = captions(tmp_path, prompt=None)[0]
    assert record.conversations == () and record.caption == "A cat."
    with pytest.raises(ValueError, match="prompt 'See <image>' must not hold <image>"):
        captions(tmp_path, prompt="See <image>")


def test_spreadsheets_and_blank_lines_and_other_columns_are_fine(tmp_path):
    save_image(tmp_path, "a.png", 1)
    text = '\ufeffid,caption, image\r\n7,"A cat, here", a.png\r\n\r\n'
    (tmp_path / "captions.csv").write_bytes(text.encode())
    (record,) = captions(tmp_path)
    assert record.caption == "A cat, here" and record.meta == {"image": "a.png", "line": 2}
    (tmp_path / "captions.csv").unlink()
    line = '{"image": "a.png", "caption": "one\u2028two", "id": 3}\r\n'
    (tmp_path / "captions.jsonl").write_bytes(("\ufeff\n" + line).encode())
    (record,) = captions(tmp_path)
    assert record.caption == "one\u2028two" and record.meta == {"image": "a.png", "line": 2}


def test_a_record_cannot_be_used_to_change_the_source(tmp_path):
    save_image(tmp_path, "a.png", 1)
    write_captions(tmp_path, [("a.png", "A cat.")])
    source = captions(tmp_path)
    source[0].meta["line"] = 99
    assert source[0].meta["line"] == 1
    again = pickle.loads(pickle.dumps(source))  # what a worker process gets
    assert again[0].caption == "A cat." and (again[0].images[0] == source[0].images[0]).all()


# --- splits ---


def names_of(folder, split, holdout=0.1):
    source = captions(folder, split=split, holdout=holdout)
    return [entry.key for entry in source._entries]  # without reading the images, which do not exist


def test_splits_are_disjoint_complete_stable_and_of_the_asked_size(tmp_path):
    rows = [(f"img/{n}.png", f"Number {n}, again.") for n in range(2000) for _ in range(2)]
    write_captions(tmp_path, rows)
    train, test = names_of(tmp_path, "train"), names_of(tmp_path, "test")
    assert len(train) + len(test) == 4000 and not set(train) & set(test)
    assert 0.08 < len(set(test)) / 2000 < 0.12  # three standard deviations are 0.02
    assert names_of(tmp_path, "all") == [name for name, _ in rows]
    # Another order, another format and another folder change nothing; nor does the spelling of a path.
    np.random.default_rng(0).shuffle(rows)
    other = tmp_path / "other"
    other.mkdir()
    write_captions(other, [(f"./{name}", caption) for name, caption in rows], "csv")
    assert set(names_of(other, "test")) == set(test)
    # A larger share holds the smaller one.
    assert set(test) < set(names_of(tmp_path, "test", 0.3))


def test_held_out_is_sha256_of_the_name():
    place = 0x7f071235 / 2**32  # from `printf a.png | sha256sum`
    assert not held_out("a.png", place) and held_out("a.png", place + 1e-9)
    assert not held_out("a.png", 0.0) and held_out("a.png", 1.0)


def test_a_split_without_examples_or_an_unknown_one_is_an_error(tmp_path):
    write_captions(tmp_path, [("a.png", "A cat.")])
    with pytest.raises(ValueError, match="none of the 1 examples of .*captions.jsonl"):
        captions(tmp_path, split="test", holdout=0.0)
    with pytest.raises(ValueError, match="split must be one of train, test, all, not 'val'"):
        captions(tmp_path, split="val")
    with pytest.raises(ValueError, match="holdout must be a share from 0 to 1, not 10"):
        captions(tmp_path, holdout=10)


# --- bad caption folders ---


BAD_JSONL = {
    "no key": ('{"image": "a.png", "caption": "A"}\n{"file": 1}', ":2 has no column 'image', only 'file'"),
    "bad json": ('{"image": "a.png", "caption": "A"}\n\n{"a" 3}', r":3 is not valid JSON \(Expecting ':'"),
    "endless json": ("[" * 100_000, ":1 is not valid JSON"),
    "a list": ('["a.png", "A cat"]', ":1 must be an object with 'image' and 'caption', not "),
    "a number": ('{"image": "a.png", "caption": 3}', ":1: the caption must be a string, not 3"),
    "no name": ('{"image": null, "caption": "A"}', ":1: the image must be a string, not None"),
    "half a character": ('{"image": "a.png", "caption": "\\ud800"}', ":1: the caption is not valid Unicode"),
    "blank": ("\n \n", " is empty; add a line"),
}
BAD_CSV = {
    "no column": ("image,text\na.png,A\n", ":2 has no column 'caption', only 'image', 'text'; rename"),
    "unquoted comma": ("image,caption\na.png,A\na.png,A, b\n", ":3 has 3 fields for 2 columns; put"),
    "open quote": ('image,caption\na.png,"A\nb.png,B\n', r":2 is not valid CSV \(unexpected end of data\)"),
    "header only": ("image,caption\n", " holds no examples; add a line"),
    "empty": ("", " is empty; add a line"),
    "empty caption": ("image,caption\na.png, \n", ":2: the caption is empty or holds <image>; correct"),
    "mark": ("image,caption\na.png,<image> A\n", ":2: the caption is empty or holds <image>"),
    "above": ("image,caption\n../a.png,A\n", ":2: image '../a.png' is not a relative path inside"),
    "around": ("image,caption\nb/../../a.png,A\n", ":2: image 'b/../../a.png' is not a relative path"),
    "absolute": ("image,caption\n/etc/a.png,A\n", ":2: image '/etc/a.png' is not a relative path"),
    "nameless": ("image,caption\n,A\n", ":2: image '' is not a relative path"),
}


@pytest.mark.parametrize("name, text, message", [
    *[pytest.param("captions.jsonl", *case, id=f"jsonl, {what}") for what, case in BAD_JSONL.items()],
    *[pytest.param("captions.csv", *case, id=f"csv, {what}") for what, case in BAD_CSV.items()],
])
def test_bad_caption_files_are_one_sentence_at_the_start(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name + message) as caught:
        captions(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
    assert caught.traceback[-1].path.parent.name == "sources"  # raised by us, not by a library


def test_bad_utf8_names_the_line(tmp_path):
    (tmp_path / "captions.csv").write_bytes(b"image,caption\na.png,A\nb.png,caf\xe9\n")
    with pytest.raises(ValueError, match=r"captions.csv:3 is not UTF-8 \(.*\); save the file as UTF-8"):
        captions(tmp_path)


def test_missing_and_doubled_caption_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither captions.jsonl nor captions.csv"):
        captions(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere holds neither"):
        captions(tmp_path / "nowhere")
    write_captions(tmp_path, [("a.png", "A")], "csv")
    write_captions(tmp_path, [("a.png", "A")], "jsonl")
    with pytest.raises(ValueError, match="holds both captions.jsonl and captions.csv; keep one of them"):
        captions(tmp_path)
    with pytest.raises(ValueError, match="cannot be opened"):
        captions(tmp_path / "captions.csv")


def test_a_missing_or_damaged_image_names_the_line(tmp_path):
    save_image(tmp_path, "a.png", 1)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    write_captions(tmp_path, [("a.png", "A"), ("gone.png", "B"), ("b.png", "C")], "csv")
    source = captions(tmp_path)
    assert source[0].caption == "A"
    with pytest.raises(FileNotFoundError, match="captions.csv:3: image .*/gone.png does not exist"):
        source[1].images[0]
    with pytest.raises(ValueError, match="captions.csv:4: image .*/b.png is damaged"):
        source[2].images[0]


# --- LLaVA-style JSON ---


OK = turns("<image>\nQ", "A")
ENTRIES = [
    {"id": "x1", "image": "one.png", "type": "qa",
     "conversations": turns("What is <image> this?", "Red.", "Sure?", "Yes.")},
    {"id": 7, "image": ["one.png", "two.png"], "conversations": turns("<image>\n<image>\nSame?", "No.")},
    {"conversations": [{"from": "system", "value": "Be brief."}, *turns("Hi", "Hello.")]},
]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_llava_json_round_trips(tmp_path, name):
    save_image(tmp_path, "one.png", 10)
    save_image(tmp_path, "two.png", 20, size=(5, 5))
    source = llava(tmp_path, ENTRIES, name)
    assert len(source) == 3
    one, both, text = source
    # The mark stays where it was: LLaVA's own reader would move it to the front.
    assert one.conversations == ((Message("user", "What is <image> this?"), Message("assistant", "Red."),
                                  Message("user", "Sure?"), Message("assistant", "Yes.")),)
    assert one.caption is None and one.meta == {"id": "x1", "image": "one.png", "entry": 0, "type": "qa"}
    assert (one.images[0] == [10, 0, 245]).all()
    assert [image.shape for image in both.images] == [(3, 4, 3), (5, 5, 3)]
    assert both.meta == {"id": 7, "image": ["one.png", "two.png"], "entry": 1, "type": None}
    assert len(text.images) == 0 and text.conversations[0][0] == Message("system", "Be brief.")
    assert [message.role for message in text.conversations[0]] == ["system", "user", "assistant"]


def test_llava_images_may_lie_elsewhere(tmp_path):
    save_image(tmp_path / "photos", "one.png", 10)
    source = llava(tmp_path, ENTRIES[:1], images=str(tmp_path / "photos"))
    assert (source[0].images[0] == [10, 0, 245]).all()
    with pytest.raises(FileNotFoundError, match=r"data.json, entry 0 \(id 'x1'\): image .*one.png does not"):
        llava(tmp_path, ENTRIES[:1])[0].images[0]


def test_llava_split_follows_the_image_then_the_id_then_the_words(tmp_path):
    entries = [{"id": n, "image": f"{n % 500}.png", "conversations": OK} for n in range(1000)]
    entries += [{"id": f"t{n}", "conversations": turns(f"Q{n}", "A")} for n in range(500)]
    entries += [{"conversations": turns(f"Q{n}", "A")} for n in range(500)]

    def numbers(order, split):
        return [entry.meta["entry"] if order is entries else 1999 - entry.meta["entry"]
                for entry in llava(tmp_path, order, split=split)._entries]

    train, test = numbers(entries, "train"), numbers(entries, "test")
    assert sorted(train + test) == list(range(2000)) and 0.07 < len(test) / 2000 < 0.13
    assert sorted(numbers(entries[::-1], "test")) == test
    assert [n for n in test if n < 500] == [n - 500 for n in test if 500 <= n < 1000]  # the same images
    assert test[0] == next(n for n in range(500) if held_out(f"{n}.png", 0.1))
    assert {n for n in range(500) if held_out(f"t{n}", 0.1)} == {n - 1000 for n in test if 1000 <= n < 1500}


BAD_ENTRIES = {
    "a string": ("entry", "entry 1 must be an object with 'conversations', not 'entry'"),
    "no turns": ({"image": "a.png"}, "entry 1: 'conversations' must be a list of turns, not None"),
    "no list": ({"id": "q", "conversations": {}}, r"entry 1 \(id 'q'\): 'conversations' must be a list"),
    "no turn": ({"conversations": []}, "entry 1: 'conversations' must end with a turn from gpt"),
    "no mark": ({"image": "a.png", "conversations": turns("Q", "A")}, "0 <image> marks for 1 images"),
    "no image": ({"conversations": OK}, "entry 1: 1 <image> marks for 0 images"),
    "two marks": ({"image": ["a.png"], "conversations": turns("<image><image>", "A")}, "2 <image> marks for"),
    "mark in gpt": ({"conversations": turns("Q", "<image>")}, "turn 1 from gpt holds <image>; only human"),
    "gpt first": ({"conversations": OK[::-1]}, "turn 0 must be system or human, not 'gpt'"),
    "gpt twice": ({"conversations": OK + OK[1:]}, "turn 2 must be human, not 'gpt'"),
    "late system": ({"conversations": OK + [{"from": "system"}]}, "turn 2 must be human, not 'system'"),
    "a robot": ({"conversations": [{"from": "robot"}]}, "turn 0 must be system or human, not 'robot'"),
    "a list of speakers": ({"conversations": [{"from": ["gpt"]}]}, r"turn 0 must be .*, not \['gpt'\]"),
    "turn is text": ({"conversations": ["Q"]}, "turn 0 must be system or human, not None"),
    "no answer": ({"conversations": OK[:1]}, "'conversations' must end with a turn from gpt; add it"),
    "no value": ({"conversations": [{"from": "human"}]}, "the value of turn 0 must be a string, not None"),
    "value number": ({"conversations": turns("Q", 3)}, "the value of turn 1 must be a string, not 3"),
    "image number": ({"image": 3, "conversations": OK}, "entry 1: the image must be a string, not 3"),
    "image list": ({"image": [None], "conversations": OK}, "entry 1: the image must be a string, not None"),
    "image above": ({"image": "../a.png", "conversations": OK}, "image '../a.png' is not a relative path"),
}


@pytest.mark.parametrize("entry, message", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_bad_llava_entries_are_one_sentence_at_the_start(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message) as caught:
        llava(tmp_path, [{"image": "a.png", "conversations": OK}, entry])
    assert str(caught.value).startswith(f"{tmp_path}/data.json, entry 1") and "\n" not in str(caught.value)
    assert caught.traceback[-1].path.parent.name == "sources"


def test_bad_llava_files(tmp_path):
    good = {"image": "a.png", "conversations": OK}
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist; check the path"):
        LlavaJsonSource(LlavaJsonConfig(str(tmp_path / "nowhere.json")))
    with pytest.raises(ValueError, match="data.json must be a list of entries, not {'image'.*"):
        llava(tmp_path, good)
    with pytest.raises(ValueError, match="data.json holds no examples"):
        llava(tmp_path, [])
    with pytest.raises(ValueError, match=r"data.jsonl:2: 1 <image> marks for 0 images"):
        llava(tmp_path, [good, {"conversations": OK}], "data.jsonl")
    (tmp_path / "data.json").write_text('[\n{"image": "a.png"},\n{"image" "b.png"}]')
    with pytest.raises(ValueError, match=r"data.json:3 is not valid JSON \(Expecting ':' delimiter\)"):
        LlavaJsonSource(LlavaJsonConfig(str(tmp_path / "data.json")))
