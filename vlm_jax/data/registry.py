"""The sources by the `kind` a config names them with. A new one is a file and a line here."""

from __future__ import annotations

from vlm_jax.data.records import Source
from vlm_jax.data.scenes import SceneConfig, SceneSource
from vlm_jax.data.sources.array_record import ArrayRecordConfig, ArrayRecordSource
from vlm_jax.data.sources.captions import CaptionFolderConfig, CaptionFolderSource
from vlm_jax.data.sources.llava import LlavaJsonConfig, LlavaJsonSource
from vlm_jax.data.sources.parquet import ParquetConfig, ParquetSource
from vlm_jax.data.sources.prefix_suffix import PrefixSuffixConfig, PrefixSuffixSource
from vlm_jax.data.sources.tfds import TfdsConfig, TfdsSource
from vlm_jax.data.sources.webdataset import WebDatasetConfig, WebDatasetSource

SOURCES = {
    SceneConfig: SceneSource,
    CaptionFolderConfig: CaptionFolderSource,
    LlavaJsonConfig: LlavaJsonSource,
    PrefixSuffixConfig: PrefixSuffixSource,
    WebDatasetConfig: WebDatasetSource,
    ParquetConfig: ParquetSource,
    ArrayRecordConfig: ArrayRecordSource,
    TfdsConfig: TfdsSource,
}

SourceConfig = (SceneConfig | CaptionFolderConfig | LlavaJsonConfig | PrefixSuffixConfig | WebDatasetConfig
                | ParquetConfig | ArrayRecordConfig | TfdsConfig)


def open_source(config: SourceConfig, keep_bad: bool = False) -> Source:
    """The source a config describes; raises where it has no examples.

    `keep_bad`: records that are known to be bad keep their places and raise when they are read, instead of now.
    """
    source = SOURCES[type(config)](config, keep_bad)
    if len(source) == 0:
        raise ValueError(f"The source {config} has no examples; check its path and split.")
    return source
