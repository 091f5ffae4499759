"""The registry of sources: the `data:` section of a recipe is one of these settings, told apart by its `source`.

A source is one file with its settings, whose `open(progress)` gives the source, and one line here.
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
