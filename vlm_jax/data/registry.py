"""The sources by the `kind` a config names them with. A new one is a file and a line here."""

from __future__ import annotations

from vlm_jax.data.records import Source
from vlm_jax.data.scenes import SceneConfig, SceneSource
from vlm_jax.data.sources import CaptionFolderConfig, CaptionFolderSource, LlavaJsonConfig, LlavaJsonSource

SourceConfig = SceneConfig | CaptionFolderConfig | LlavaJsonConfig

SOURCES = {SceneConfig: SceneSource, CaptionFolderConfig: CaptionFolderSource, LlavaJsonConfig: LlavaJsonSource}


def open_source(config: SourceConfig) -> Source:
    """The source a config describes; raises where it has no examples."""
    source = SOURCES[type(config)](config)
    if len(source) == 0:
        raise ValueError(f"The source {config} has no examples; check its path and split.")
    return source
