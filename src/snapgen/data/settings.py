"""The `data:` section of a recipe: one of the sources' settings, told apart by `source`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from snapgen.data.folder import FolderSettings
from snapgen.data.scenes import SceneSettings
from snapgen.data.shards import ShardSettings

DataSettings = Annotated[SceneSettings | FolderSettings | ShardSettings, Field(discriminator="source")]
