"""The setting `model` of a recipe: a preset by name, or a preset with changes to its configuration."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast, get_type_hints

from pydantic import ConfigDict, SerializerFunctionWrapHandler, ValidationError, create_model, model_serializer
from pydantic import model_validator as validator

from snapgen.config import RecipeError, Settings
from snapgen.messages import one_line
from snapgen.models.autoencoder import SnapGenAutoencoder
from snapgen.models.denoiser import Denoiser
from snapgen.models.presets import TEACHERS, create_autoencoder, create_denoiser
from snapgen.models.teacher import TeacherTransformer
from snapgen.models.unet import SnapGenUNet


class NetworkSettings(Settings):
    """A preset, and what is to be different: `t2i`, or `{preset: t2i, cross_attention_dim: 2048}`.

    The changes are arguments of the network's class, with the types that it states.
    """

    model_config = ConfigDict(extra="allow")
    decided: ClassVar[dict[str, str]] = {}  # arguments that cannot be changed here, and the setting that decides them

    preset: str

    @validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @validator(mode="after")
    def _changes_fit_the_class(self) -> NetworkSettings:
        self.changes()
        return self

    @model_serializer(mode="wrap")
    def _name_if_alone(self, whole: SerializerFunctionWrapHandler) -> Any:
        return whole(self) if self.model_extra else self.preset

    def __str__(self) -> str:
        changes = ", ".join(f"{name} {value}" for name, value in (self.model_extra or {}).items())
        return self.preset + (f" with {changes}" if changes else "")

    @property
    @abstractmethod
    def network_class(self) -> type[Any]:
        """The network's class."""

    @abstractmethod
    def create(self) -> Any:
        """The network, randomly initialised."""

    def changes(self) -> dict[str, Any]:
        """The changes as the network's class takes them; ValueError naming the first that it does not take."""
        given = self.model_extra or {}
        hints = get_type_hints(inspect.unwrap(self.network_class.__init__))
        for key in given:
            if key in self.decided:
                raise ValueError(f"{key} is decided by {self.decided[key]}")
            if key not in hints:
                raise ValueError(f"unknown key {key}, expected some of {', '.join(hints)}")
        if not given:
            return {}
        kinds: dict[str, Any] = {key: (hints[key], ...) for key in given}
        try:
            typed = create_model("Changes", __base__=Settings, **kinds).model_validate_json(json.dumps(given))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{key}: {first['msg'].lower()}") from None
        return {key: getattr(typed, key) for key in given}

    def check_trained(self, network: Any, folder: Path) -> None:
        """RecipeError if `network`, trained already and read from `folder`, is not as the changes say."""
        for key, value in self.changes().items():
            found = network.config[key]
            if (tuple(found) if isinstance(found, list) else found) != value:
                raise RecipeError(f"model: {key} is {value}, but the network in {folder} was trained with {found}")

    def _built(self, build: Any, changes: dict[str, Any]) -> Any:
        """`build(preset, **changes)`; RecipeError if the changes make no network."""
        try:
            return build(self.preset, **changes)
        except Exception as error:  # whatever torch and diffusers raise on impossible shapes
            if not self.model_extra:
                raise
            raise RecipeError(f"model: {self} cannot be built: {one_line(error, 200)}") from error


class DenoiserSettings(NetworkSettings):
    """A UNet, or a transformer that can teach one."""

    decided = {"sample_size": "data.resolution"}

    @property
    def network_class(self) -> type[Denoiser]:
        """The class of UNets or of teachers."""
        return TeacherTransformer if self.preset in TEACHERS else SnapGenUNet

    def create(self, **more: Any) -> Denoiser:
        """The network, randomly initialised; `more`: further arguments."""
        return cast(Denoiser, self._built(create_denoiser, self.changes() | more))


class AutoencoderSettings(NetworkSettings):
    """An autoencoder."""

    @property
    def network_class(self) -> type[SnapGenAutoencoder]:
        """The class of autoencoders."""
        return SnapGenAutoencoder

    def create(self) -> SnapGenAutoencoder:
        """The network, randomly initialised."""
        return cast(SnapGenAutoencoder, self._built(create_autoencoder, self.changes()))
