"""The values that the web app's tests hold its code to are Python's."""

import json
from collections.abc import Callable
from types import ModuleType


def test_the_golden_values_are_those_of_python(script: Callable[[str], ModuleType]) -> None:
    """After a change on purpose: `python scripts/web_golden.py`, and then `npm test` in web/."""
    golden = script("web_golden")
    assert json.loads(golden.GOLDEN.read_text()) == golden.golden()
