"""Bad records: counted, named and replaced within the allowed share; the order of all others never moves."""

import io
import json
import pickle
import struct
import types
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vlm_jax.data.digest import origins
from vlm_jax.data.images import ImageProcessor
from vlm_jax.data.pipeline import DataConfig, RowsConfig, batches
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.reading import Reader, Tally
from vlm_jax.data.registry import open_source
from vlm_jax.data.sources.array_record import ArrayRecordConfig, writer
from vlm_jax.data.sources.captions import CaptionFolderConfig
from vlm_jax.data.sources.llava import LlavaJsonConfig
from vlm_jax.data.sources.parquet import ParquetConfig
from vlm_jax.data.sources.text import MAX_TEXT
from vlm_jax.data.sources.webdataset import WebDatasetConfig
from vlm_jax.data.tokenizer import train

PROCESSOR = Processor(ProcessorConfig(ImageProcessor(16)), train(["a"], 270),
                      types.SimpleNamespace(image_size=16, patch_size=16))
COUNT, BAD = 40, 13  # records, and which of them is spoilt


def jpeg(seed=0, side=24) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a huge picture: its header is right, and a few bytes of data follow."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def folder(path, spoil="nothing"):
    """A captioned folder, record BAD of which has one thing wrong with it."""
    path.mkdir()
    lines = []
    for i in range(COUNT):
        (path / f"{i}.jpg").write_bytes(jpeg(i))
        lines.append(json.dumps({"image": f"{i}.jpg", "caption": f"n {i}"}).encode())
    image = path / f"{BAD}.jpg"
    if spoil == "truncated":
        image.write_bytes(jpeg(BAD)[:-300])
    elif spoil == "zero bytes":
        image.write_bytes(b"")
    elif spoil == "missing":
        image.unlink()
    elif spoil == "bomb":
        image.write_bytes(png_header(50_000, 50_000))
    elif spoil == "utf-8":
        lines[BAD] = lines[BAD].replace(b"n ", b"caf\xe9 ")
    elif spoil == "type":
        lines[BAD] = json.dumps({"image": 7, "caption": ["n"]}).encode()
    elif spoil == "json":
        lines[BAD] = lines[BAD][:-4]
    elif spoil == "long":
        lines[BAD] = json.dumps({"image": f"{BAD}.jpg", "caption": "x" * 10_000_000}).encode()
    (path / "captions.jsonl").write_bytes(b"\n".join(lines))
    return CaptionFolderConfig(str(path), "all")


SAYS = {
    "truncated": f"captions.jsonl:{BAD + 1}: image .*/{BAD}.jpg is damaged or truncated",
    "zero bytes": f"captions.jsonl:{BAD + 1}: image .*/{BAD}.jpg is empty",
    "missing": f"captions.jsonl:{BAD + 1}: image .*/{BAD}.jpg does not exist",
    "bomb": f"captions.jsonl:{BAD + 1}: image .*/{BAD}.jpg has .* pixels",
    "utf-8": f"captions.jsonl:{BAD + 1} is not UTF-8",
    "type": f"captions.jsonl:{BAD + 1}: the caption must be a string",
    "json": f"captions.jsonl:{BAD + 1} is not valid JSON",
    "long": f"captions.jsonl:{BAD + 1}: the caption has 10,000,000 characters, over the limit of {MAX_TEXT:,}",
}


def data(source, **options):
    return DataConfig(source, 8, RowsConfig(96), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The order of the unspoilt folder, [steps, batch] indices."""
    return origins(data(folder(tmp_path_factory.mktemp("whole") / "set")), PROCESSOR, 1, 0, 10)[:, :, 0, 1]


@pytest.mark.parametrize("spoil", SAYS)
def test_a_bad_record_is_replaced_and_no_other_moves(tmp_path, whole, spoil, capfd):
    source = folder(tmp_path / "set", spoil)
    found = origins(data(source, bad_share=0.1), PROCESSOR, 1, 0, 10)[:, :, 0, 1]
    spoilt = whole == BAD
    assert spoilt.sum() == 2  # two epochs in ten batches of eight
    assert np.array_equal(found[~spoilt], whole[~spoilt]) and BAD not in found
    assert capfd.readouterr().err.count("skipped a bad record (1 so far)") == 1
    again = origins(data(source, bad_share=0.1), PROCESSOR, 1, 0, 10, hosts=2)[:, :, 0, 1]
    assert np.array_equal(again, found)


@pytest.mark.parametrize("spoil", SAYS)
def test_where_none_may_be_bad_the_first_is_named(tmp_path, spoil):
    kind = FileNotFoundError if spoil == "missing" else ValueError
    with pytest.raises(kind, match=SAYS[spoil]) as error:
        list(batches(data(folder(tmp_path / "set", spoil)), PROCESSOR, 1, 0, 6))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_more_than_the_share_is_one_error_that_names_the_record(tmp_path):
    source = folder(tmp_path / "set")
    for i in range(0, COUNT, 4):  # a quarter
        (tmp_path / "set" / f"{i}.jpg").write_bytes(jpeg(i)[:200])
    with pytest.raises(ValueError, match=r"bad_share=0.1 allows: \d+ of \d+ read, .*captions.jsonl:\d+: image .* is damaged"):
        list(batches(data(source, bad_share=0.1), PROCESSOR, 1, 0, 100))
    assert len(list(batches(data(source, bad_share=0.4), PROCESSOR, 1, 0, 20))) == 20


def test_a_source_that_is_all_bad_ends_with_an_error(tmp_path):
    source = folder(tmp_path / "set")
    for i in range(COUNT):
        (tmp_path / "set" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="bad_share=0.9|substitutes in a row"):
        list(batches(data(source, bad_share=0.9), PROCESSOR, 1, 0, 100))


def test_a_wrong_type_in_llava_json_and_bad_utf8_keep_their_places(tmp_path):
    talk = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    entries = [{"id": i, "conversations": talk} for i in range(5)]
    entries[2]["conversations"] = "hello"
    entries[3] = 17
    text = json.dumps(entries).encode().replace(b'"id": 4, "conversations": [{"from": "human", "value": "Q"',
                                                b'"id": 4, "conversations": [{"from": "human", "value": "Q\xff"')
    (tmp_path / "a.json").write_bytes(text)
    config = LlavaJsonConfig(str(tmp_path / "a.json"), split="all")
    with pytest.raises(ValueError, match=r"entry 2 \(id 2\): 'conversations' must be a list"):
        open_source(config)
    source = open_source(config, keep_bad=True)
    assert len(source) == 5 and source[1].meta["id"] == 1
    for index, message in {2: "must be a list of turns", 3: "must be an object", 4: "not valid Unicode"}.items():
        with pytest.raises(ValueError, match=f"entry {index}.*{message}"):
            source[index]


def test_tar_members_outside_and_spoilt_members(tmp_path, save_tar):
    good = jpeg()
    save_tar(tmp_path / "a.tar", [
        ("0.jpg", good), ("0.txt", b"zero"), ("../1.jpg", good), ("../1.txt", b"one"), ("/2.txt", b"two"),
        ("3.jpg", good), ("3.txt", b"caf\xe9"), ("4.jpg", good), ("4.json", b"[1]"), ("5.jpg", good),
        ("6.jpg", good[:200]), ("6.txt", b"six"), ("7.jpg", good), ("7.txt", b"x" * 10_000_000), ("8.txt", b"eight")])
    config = WebDatasetConfig(str(tmp_path / "a.tar"))
    with pytest.raises(ValueError, match="a.tar: member '../1.jpg' is not a relative path inside the tar"):
        open_source(config)
    source = open_source(config, keep_bad=True)
    assert len(source) == 9 and source[0].caption == "zero" and source[8].caption == "eight"
    for index, message in {1: "'../1.jpg' is not", 2: "'/2.txt' is not", 3: "a.tar, 3: txt is not UTF-8",
                           4: "4: json must hold an object", 5: "a.tar, 5 has neither conversations nor prefix",
                           7: "7: txt has 10,000,000 bytes of text"}.items():
        with pytest.raises(ValueError, match=message):
            source[index]
    with pytest.raises(ValueError, match="a.tar, 6: image 6.jpg is damaged"):
        source[6].images[0]


def test_a_cut_or_compressed_tar_is_one_sentence(tmp_path, save_tar):
    save_tar(tmp_path / "a.tar", [(f"{i}.jpg", jpeg()) for i in range(9)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + whole[:5000])
    with pytest.raises(ValueError, match="a.tar is no uncompressed tar file, or a damaged one"):
        open_source(WebDatasetConfig(str(tmp_path / "a.tar")))


def test_spoilt_cells_of_a_parquet_file(tmp_path):
    words = [b"zero", b"caf\xe9", b"two", b"three", b"x" * 2_000_000]
    offsets = pyarrow.py_buffer(np.cumsum([0, *map(len, words)]).astype(np.int32).tobytes())
    captions = pyarrow.Array.from_buffers(pyarrow.utf8(), 5, [None, offsets, pyarrow.py_buffer(b"".join(words))])
    images = [{"bytes": jpeg(), "path": None}, {"bytes": jpeg(), "path": None}, {"bytes": None, "path": "gone.jpg"},
              {"bytes": jpeg()[:200], "path": "cut.jpg"}, None]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "caption": captions}), tmp_path / "a.parquet")
    source = open_source(ParquetConfig(str(tmp_path)))
    assert source[0].caption == "zero" and len(source) == 5
    for index, message in {1: "a.parquet, row 1 is not UTF-8", 2: "a.parquet, row 2: the image must be the bytes of an image",
                           4: "a.parquet, row 4: the caption has 2,000,000 characters"}.items():
        with pytest.raises(ValueError, match=message):
            source[index]
    with pytest.raises(ValueError, match="a.parquet, row 3: image cut.jpg is damaged"):
        source[3].images[0]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="a.parquet is not a Parquet file, or a damaged one"):
        open_source(ParquetConfig(str(tmp_path)))


def test_a_spoilt_array_record_is_one_sentence(tmp_path):
    out = writer(str(tmp_path / "a.array_record"))
    out.write(b"\x05\x00\x00\x00{}")
    out.close()
    with pytest.raises(ValueError, match="record 0 is damaged or was not written by python -m vlm_jax.prepare"):
        open_source(ArrayRecordConfig(str(tmp_path)))[0]
    (tmp_path / "a.array_record").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is not an ArrayRecord file, or a damaged one"):
        open_source(ArrayRecordConfig(str(tmp_path)))


def test_substitutes_are_a_function_of_seed_and_index():
    part = types.SimpleNamespace(name="a", source=range(1000), indices=range(100, 200))
    reader, other = Reader([part], None, 1, 0.1), Reader([part], None, 2, 0.1)
    tried = [reader.substitute((0, 150), n) for n in range(20)]
    assert tried[0] == (0, 150) and tried == [reader.substitute((0, 150), n) for n in range(20)]
    assert all(100 <= index < 200 for _, index in tried) and len(set(tried)) > 15
    assert tried[1:] != [other.substitute((0, 150), n) for n in range(1, 20)]
    assert tried[1:] != [reader.substitute((0, 151), n) for n in range(1, 20)]


def test_the_share_is_not_judged_by_a_few_records():
    tally = pickle.loads(pickle.dumps(Tally(0.01, [50_000])))  # as a worker process has it
    for index in range(10):
        tally.bad(0, index, ValueError("x"))
    with pytest.raises(ValueError, match="11 of 11 read, the last one being y"):
        tally.bad(0, 11, ValueError("y"))
