"""The registry of data sources: the key `source` of a recipe's `data:` section picks one of these settings.

A new source is one file with its settings, whose `open(progress)` returns the source, and an import and a line here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from snapgen.data.folder import FolderSettings
from snapgen.data.shards import ShardSettings
from snapgen.world.source import SceneSettings

DataSettings = Annotated[
    SceneSettings  # scenes
    | FolderSettings  # folder
    | ShardSettings,  # shards
    Field(discriminator="source"),
]
