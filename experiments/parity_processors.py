"""python -m experiments.parity_processors DIR_OF_FOLDERS [--only NAME]

The processors of published checkpoints. A folder with a `cases.json` (texts, ids, decoded texts, conversations) is a
tokenizer's. One with a `reference.npz` that has keys `<case>/raw/<name>` is a checkpoint's: of the raw images and
prompts, given as text and as messages, its processor must make exactly `<case>/in/<name>` (pixels within one grey
level), and of these its model `<case>/out/<name>`, within the tolerance of `experiments.parity`. One with an
`images.npz` is of image processors alone: NAME.json is a preprocessor_config.json, and of the image KEY the keys
NAME/KEY/... of its reference.npz tell the shape, a sample, a digest of the pixels before they are normalised, and the
other arrays. Prints what differs in every folder, and exits 1 where anything does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import sys
import tempfile
from typing import Any, Iterator

import numpy as np
from PIL import Image

import vlm_jax
from experiments.parity import differences, part, with_config
from vlm_jax.data.huggingface import images as hf_images

GREY_LEVEL = 1 / 255 / 0.25  # in normalised pixels; the standard deviations that processors divide by are larger
Check = tuple[str, Any, Any]  # what, ours, wanted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.parity_processors", description=__doc__,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=pathlib.Path)
    parser.add_argument("--only", action="append", help="a folder's name; may be repeated")
    args = parser.parse_args()
    found = [folder for folder in sorted(args.folders.iterdir()) if not args.only or folder.name in args.only]
    good = [show(folder.name, checks) for folder in found if (checks := checks_of(folder)) is not None]
    if not good:
        sys.exit(f"error: no folder with a cases.json or with raw inputs in a reference.npz in {args.folders}.")
    sys.exit(0 if all(good) else 1)


def checks_of(folder: pathlib.Path) -> Iterator[Check] | None:
    if (folder / "cases.json").exists():
        return tokenizer_checks(folder)
    if (folder / "images.npz").exists():
        return image_checks(folder)
    reference = folder / "reference.npz"
    if reference.exists() and any("/raw/" in key for key in np.load(reference)):
        return checkpoint_checks(folder)
    return None


def tokenizer_checks(folder: pathlib.Path) -> Iterator[Check]:
    """Every string and conversation of a cases.json. `decoded` has the special tokens where `decoded_plain` is too."""
    p, cases = vlm_jax.load_processor(folder), json.loads((folder / "cases.json").read_text())
    for case in cases["cases"]:
        yield f"ids of {case['text']!r}", p.tokenize(case["text"]), case["ids"]
        plain = case.get("decoded_plain", case["decoded"])
        yield f"plain text of {case['ids']}", p.decode(case["ids"], skip_special_tokens=True), plain
        if "decoded_plain" in case:
            yield f"text of {case['ids']}", p.decode(case["ids"]), case["decoded"]
    if cut := cases.get("truncated_to_77"):
        yield "ids cut to 77", p.tokenizer.tokenize(cut["text"], max_length=77), cut["ids"]
    for case in cases.get("chat", []):
        text = p.chat(case["messages"], case["add_generation_prompt"])
        yield f"chat {case['text']!r}", text, case["text"]
        yield f"ids of chat {case['text']!r}", p.tokenizer.tokenize(text, special=False), case["ids"]


def image_checks(folder: pathlib.Path) -> Iterator[Check]:
    """Every image through every processor; `rgba_dropped` is `rgba` without its alpha channel."""
    images, reference = np.load(folder / "images.npz"), np.load(folder / "reference.npz")
    told = ("shape", "step", "sample", "sum", "sumsq", "sha256_uint8")
    for case in dict.fromkeys(key.rsplit("/", 1)[0] for key in reference):
        name, key = case.split("/")
        config = json.loads((folder / f"{name}.json").read_text())
        image = Image.fromarray(images[key] if key in images else images[key.removesuffix("_dropped")][..., :3])
        got, wanted = hf_images.from_config(config)([image]), part(reference, name, key)
        pixels = got["pixel_values"]
        yield f"{case} shape", list(pixels.shape), wanted["shape"].tolist()
        if list(pixels.shape) == wanted["shape"].tolist():
            yield f"{case} sample", pixels[tuple(slice(None, None, n) for n in wanted["step"])], wanted["sample"]
        plain = hf_images.from_config(config | {"do_rescale": False, "do_normalize": False})([image])["pixel_values"]
        digest = hashlib.sha256(np.ascontiguousarray(plain.astype(np.uint8))).hexdigest()
        yield f"{case} digest", digest, str(wanted["sha256_uint8"])
        for array in set(wanted) - set(told):
            yield f"{case} {array}", got.get(array, np.zeros(0)), wanted[array]


def checkpoint_checks(folder: pathlib.Path) -> Iterator[Check]:
    """With either config: every input of every case, from text and from messages, and every output from text."""
    reference = np.load(folder / "reference.npz")
    for config in ("config.json", "config.hub.json"):
        with tempfile.TemporaryDirectory() as copy:
            pt = vlm_jax.load_pretrained(with_config(folder, config, pathlib.Path(copy)))
        for case in dict.fromkeys(key.split("/")[0] for key in reference):
            wanted = part(reference, case, "in")
            raw = part(reference, case, "raw") or part(reference, "batch", "raw")  # `right`: the first of `batch`
            for kind, prompts in ways(raw, len(wanted["input_ids"])).items():
                where = f"{config.removesuffix('.json')} {case} {kind}"
                got = pt.processor(**prompts, padding_side="right" if case == "right" else "left")
                yield f"{where} names", sorted(got), sorted(wanted)
                yield from ((f"{where} {name}", got[name], wanted[name]) for name in sorted(set(got) & set(wanted)))
                if kind == "text":
                    for name, error, good in differences(pt, got, part(reference, case, "out")):
                        yield f"{where} {name}", "equal" if good else f"{error:.1e} away", "equal"


def ways(raw: dict[str, np.ndarray], rows: int) -> dict[str, dict[str, Any]]:
    """The first `rows` prompts of a case with their images, by the name of each way in which they are given."""
    pictures = iter([Image.fromarray(raw[f"image_{i}"]) for i in range(sum(key.startswith("image_") for key in raw))])
    counts = raw.get("images_per_prompt")
    images = [list(pictures)] if counts is None else [[next(pictures) for _ in range(n)] for n in counts[:rows]]
    given = {"text": {"text": [str(text) for text in raw["text"][:rows]], "images": images}}
    if "messages" in raw:
        given["messages"] = {"messages": json.loads(str(raw["messages"]))[:rows], "images": images}
    return given


def differs(got: Any, wanted: Any) -> str:
    """What is different, in words; empty where nothing is."""
    if not isinstance(wanted, np.ndarray):
        return "" if got == wanted else f"{got!r:.300} instead of {wanted!r:.300}"
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return f"{got.dtype} {got.shape} instead of {wanted.dtype} {wanted.shape}"
    if wanted.dtype.kind == "f":
        error = np.abs(got - wanted).max(initial=0)
        return "" if error <= GREY_LEVEL else f"largest difference {error:.3g}"
    return "" if np.array_equal(got, wanted) else f"{(got != wanted).sum()} of {wanted.size} values"


def show(name: str, checks: Iterator[Check]) -> bool:
    results = [(what, differs(got, wanted)) for what, got, wanted in checks]
    wrong = [f"    {what}: {how}" for what, how in results if how]
    print(f"{name:24} {len(results) - len(wrong)} of {len(results)} equal", *wrong, sep="\n", flush=True)
    return not wrong


if __name__ == "__main__":
    main()
