"""The rows of many files as one sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


class Rows:
    """The rows of `parts` one after the other; of parts that are mapped files, only rows asked for are read."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, number: int) -> tuple[int, int]:
        """The part that row `number` lies in, and its place there."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        return part, number - int(self._ends[part]) + len(self.parts[part])

    def __getitem__(self, number: int) -> Tensor:
        part, place = self.locate(number)
        return self.parts[part][place]
