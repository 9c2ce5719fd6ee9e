"""Rows `data/...`: the input side, against the bare decoder, against torch.utils.data, and against its own memory."""

from __future__ import annotations

import concurrent.futures
import functools
import io
import os
import pathlib
import statistics
import tempfile
import time
import types
from typing import Any, Callable

import numpy as np
import simplejpeg
from PIL import Image

from experiments.benchmarks.timing import Row
from vlm_jax.data import images
from vlm_jax.data.encoded import from_bytes
from vlm_jax.data.images import CLIP_MEAN, CLIP_STD, ImageProcessor
from vlm_jax.data.packing import Size, block_size, pack_first
from vlm_jax.data.pipeline import DataConfig, PairsConfig, RowsConfig, read, traced
from vlm_jax.data.processor import Processor, ProcessorConfig
from vlm_jax.data.records import Record
from vlm_jax.data.scenes import SceneConfig
from vlm_jax.data.shards import make_plan, prepare
from vlm_jax.data.sources.array_record import ArrayRecordConfig, pack, writer
from vlm_jax.data.tokenizer import train

FILES, SIDE, BATCH, THREADS = 96, 224, 16, 2
COPIES = 10  # of each file in the source: Grain's shuffle is slow on sources of less than some hundred records
EXAMPLES = 100_000


def photographs() -> list[bytes]:
    """JPEG files of 640 x 480, about 100 kB each, with the smooth shapes and the grain of photographs."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8))
        coarse = coarse.resize((640, 480), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (480, 640, 1))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def decode() -> Row:
    """Seconds for all files, on THREADS threads or processes.

    `ours`: JPEG to training tensor, `bare`: decoder and resize alone, ratio = bare / ours. `pipeline`: batches of pairs
    from ArrayRecord as a run reads them, `torch` (where it is installed): its DataLoader with Pillow on the same work,
    peer_ratio = torch / pipeline.
    """
    files = photographs()
    processor = ImageProcessor(SIDE)
    sides: dict[str, Callable[[], Any]] = {
        "ours": _threads(files, lambda file: processor(images.decode(file, "x"))), "bare": _threads(files, _bare),
        "pipeline": _pipeline(files)}
    try:
        sides["torch"] = _torch(files)
    except ImportError:  # the extra `peer`
        pass
    times = {name: [] for name in sides}
    for _ in range(12):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    row: Row = {name: statistics.median(taken[1:]) for name, taken in times.items()}  # the first one warms up
    row |= {"ratio": row["bare"] / row["ours"], "images_per_s": FILES / row["pipeline"]}
    return row | ({"peer_ratio": row["torch"] / row["pipeline"]} if "torch" in row else {})


def _threads(files: list[bytes], one: Callable[[bytes], np.ndarray]) -> Callable[[], list[np.ndarray]]:
    """Calls `one` with every file, on THREADS threads."""
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    return lambda: list(pool.map(one, files))


def _bare(file: bytes) -> np.ndarray:
    image = Image.fromarray(simplejpeg.decode_jpeg(file))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _pipeline(files: list[bytes]) -> Callable[[], Any]:
    folder = tempfile.mkdtemp()
    out = writer(os.path.join(folder, "a.array_record"))
    for i, file in enumerate(files * COPIES):
        out.write(pack(Record(from_bytes([file], ["x"], "x"), f"photograph {i}")))
    out.close()
    eyes = types.SimpleNamespace(image_size=SIDE, patch_size=16)
    processor = Processor(ProcessorConfig(ImageProcessor(SIDE)), train(["photograph 1"], 300), eyes, 16)
    data = DataConfig(ArrayRecordConfig(folder), BATCH, PairsConfig())
    batches = traced(data, processor, 0)
    return lambda: [batch["images"] for batch in read(batches, 0, FILES // BATCH)]


def _torch(files: list[bytes]) -> Callable[[], Any]:
    import torch.utils.data

    loader = torch.utils.data.DataLoader(_Files(files), batch_size=BATCH, num_workers=THREADS, persistent_workers=True)
    return lambda: list(loader)


class _Files:
    """What a map-style data set of PyTorch usually is."""

    def __init__(self, files: list[bytes]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        import torch

        image = Image.open(io.BytesIO(self.files[index])).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        return pixels.sub_(mean).div_(std)


def packing(length: int) -> Row:
    """Rows filled with lengths as in LLaVA's instruction mix: 576 visual tokens in all but 6 % of the examples, and
    words whose number is log-normal with median 280. `ours` is the time to plan a block of 256 rows."""
    rng = np.random.default_rng(0)

    def sizes(count: int) -> list[Size]:
        words = np.clip(rng.lognormal(np.log(280), 0.75, count), 20, 1800).astype(int)
        images = rng.random(count) > 0.06
        return [Size(min(int(n) + 576 * int(image), length), int(image)) for n, image in zip(words, images)]

    rows, slots, blocks = 256, length // 512, 8
    examples = block_size(sizes(4096), rows, length, slots)
    filled, left, taken = 0, 0, []
    for _ in range(blocks):
        block = sizes(examples)
        start = time.perf_counter()
        planned = pack_first(block, rows, length, slots)
        taken.append(time.perf_counter() - start)
        filled += sum(block[i].tokens for row in planned for i in row)
        left += examples - sum(map(len, planned))
    alone = np.mean([size.tokens for size in sizes(4096)]) / length
    return {"ours": statistics.median(taken), "filled": filled / (blocks * rows * length), "one_a_row": float(alone),
            "left_out": left / (blocks * examples)}


def memory() -> Row:
    """Resident memory of a loader that delivers 100,000 packed examples from ArrayRecord; `ours` is the time it takes.

    `grown_mb`: after all of them against after the first tenth, when every buffer has its size.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepare(make_plan(SceneConfig(size=1000, conversations=1), folder, 500, 0.0))
        eyes = types.SimpleNamespace(image_size=64, patch_size=16)
        processor = Processor(ProcessorConfig(ImageProcessor(64)), train(["a red 3"], 300), eyes)
        data = DataConfig(ArrayRecordConfig(folder), 32, RowsConfig(512, 8, arrange="packed"))
        seen, resident, start = 0, {}, time.perf_counter()
        for batch in read(traced(data, processor, 0), 0, 10**9):
            seen += int((batch["origin"][..., 0] >= 0).sum())
            for mark in (EXAMPLES // 10, EXAMPLES):
                if seen >= mark and mark not in resident:
                    resident[mark] = _resident()
            if len(resident) == 2:
                break
        taken = time.perf_counter() - start
    first, last = resident.values()
    return {"ours": taken, "examples": seen, "resident_mb": last, "grown_mb": last - first}


def _resident() -> float:
    """Megabytes of this process that are in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


ROWS = {"data/decode": decode, "data/packing_4096": functools.partial(packing, 4096),
        "data/packing_8192": functools.partial(packing, 8192), "data/memory": memory}
