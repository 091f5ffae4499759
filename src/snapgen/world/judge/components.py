"""Connected components of a mask, and their boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    def gap(self, other: Box) -> int:
        """Pixels between both boxes along the axis that separates them most; negative: they overlap."""
        across = max(self.left, other.left) - min(self.right, other.right)
        down = max(self.top, other.top) - min(self.bottom, other.bottom)
        return max(across, down)


def label(mask: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """Connected components of the bool H W `mask`; pixels that touch at a corner are connected.

    Returns labels (int32 H W: 0 is outside, i + 1 is component i) and the components' boxes.
    """
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    found = ndimage.find_objects(labels)
    return labels, [Box(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in found]
