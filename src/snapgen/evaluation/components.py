"""Connected components of a mask, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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

    def union(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )

    def gap(self, other: Box) -> int:
        """Pixels between both along the axis that separates them most; negative: they overlap."""
        across = max(self.left, other.left) - min(self.right, other.right)
        down = max(self.top, other.top) - min(self.bottom, other.bottom)
        return max(across, down)


def label(mask: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """Components of the bool H W `mask`, touching corners included.

    Returns labels (int32 H W; 0 is outside, component i is i + 1) and the components' boxes.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    rows, edges = np.nonzero(np.diff(padded, axis=1))
    # The pixels of a row change from outside to inside and back: edges come in pairs, one pair a run.
    row, start, stop = rows[::2].tolist(), edges[::2].tolist(), edges[1::2].tolist()
    parents = list(range(len(row)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above = 0  # first run of the previous row that may still touch
    for run in range(len(row)):
        while above < run and (row[above] < row[run] - 1 or (row[above] == row[run] - 1 and stop[above] < start[run])):
            above += 1
        other = above
        while other < run and row[other] == row[run] - 1 and start[other] <= stop[run]:
            parents[root(other)] = root(run)
            other += 1
    labels = np.zeros((height, width), dtype=np.int32)
    numbers: dict[int, int] = {}
    boxes: list[Box] = []
    for run in range(len(row)):
        box = Box(start[run], row[run], stop[run], row[run] + 1)
        number = numbers.setdefault(root(run), len(boxes))
        if number == len(boxes):
            boxes.append(box)
        else:
            boxes[number] = boxes[number].union(box)
        labels[row[run], start[run] : stop[run]] = number + 1
    return labels, boxes
