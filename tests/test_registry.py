"""Registries: what stands at a place, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import pytest

import snapgen
from snapgen.cli.main import VERBS
from snapgen.evaluation import SUITES
from snapgen.evaluation.features import NETWORKS
from snapgen.registry import load_attribute
from snapgen.train.stages import STAGES


def test_a_place_is_a_module_and_an_attribute() -> None:
    assert load_attribute("fractions:Fraction") is Fraction


@pytest.mark.parametrize(
    ("place", "error"), [("fractions:Nothing", AttributeError), ("snapgen.nothing:Fraction", ModuleNotFoundError)]
)
def test_nothing_there(place: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="[nN]othing"):
        load_attribute(place)


@pytest.mark.parametrize(
    "places",
    [
        VERBS.values(),
        STAGES.values(),
        NETWORKS.values(),
        [entry.function for entry in SUITES.values()],
        snapgen._HOMES.values(),
    ],
    ids=["verbs", "stages", "networks", "suites", "public face"],
)
def test_something_stands_at_every_place(places: Iterable[str]) -> None:
    assert all(callable(load_attribute(place)) for place in places)
