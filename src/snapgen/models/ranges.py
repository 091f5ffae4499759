"""The ranges in which the networks' configurations are defined, and the check that keeps them.

A configuration may come from anyone's `config.json`. Within these ranges a network is built in seconds, however its
settings are combined; whatever is outside is a one-line ValueError before anything is built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Concatenate, ParamSpec, TypeVar, cast

from pydantic import ConfigDict, Field, ValidationError, validate_call

from snapgen.messages import first_mistake

STAGES = 8  # the most resolutions of a network

Width = Annotated[int, Field(ge=1, le=16_384)]  # channels, or features of a token
Count = Annotated[int, Field(ge=1, le=64)]  # blocks of a stage, layers of a transformer, or heads
Positions = Annotated[int, Field(ge=1, le=8)]  # of a stage, each of which may have layers of its own
Layers = Annotated[int, Field(ge=0, le=32)]  # at a position
Ratio = Annotated[int, Field(ge=1, le=16)]  # a hidden width over a width
Side = Annotated[int, Field(ge=1, le=1024)]  # of a latent, in latent positions
Positive = Annotated[float, Field(gt=0, le=1e6)]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]

_PER_STAGE = Field(min_length=1, max_length=STAGES, strict=False)  # JSON has lists, not tuples
Widths = Annotated[tuple[Width, ...], _PER_STAGE]
Counts = Annotated[tuple[Count, ...], _PER_STAGE]
StageLayers = Annotated[tuple[Layers, ...], _PER_STAGE]
Flags = Annotated[tuple[bool, ...], _PER_STAGE]

Self = TypeVar("Self")
Arguments = ParamSpec("Arguments")


def within_ranges(init: Callable[Concatenate[Self, Arguments], None]) -> Callable[Concatenate[Self, Arguments], None]:
    """Checks the arguments of a network's `__init__` by their annotations; ValueError naming the first wrong one."""
    checked = validate_call(config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))(init)

    @functools.wraps(init)
    def build(self: Self, *arguments: Arguments.args, **settings: Arguments.kwargs) -> None:
        try:
            checked(self, *arguments, **settings)
        except ValidationError as error:
            raise ValueError(f"{type(self).__name__}: {first_mistake(error)}") from None

    return cast(Callable[Concatenate[Self, Arguments], None], build)
