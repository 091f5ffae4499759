"""Between uint8 pictures and tensors, and random crops that depend on a seed alone."""

from __future__ import annotations

import numpy as np
import torch


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures H W 3 of one size -> float32 B 3 H W in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_uint8(pictures: torch.Tensor) -> list[np.ndarray]:
    """B 3 H W in [-1, 1] (clamped) -> uint8 pictures H W 3."""
    scaled = (pictures.float().clamp(-1, 1) + 1.0) * 127.5
    return list(scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy())


def random_crop(picture: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """A `size` x `size` part of `picture` (H W 3), at a place that `seed` decides; the picture itself if no larger."""
    height, width = picture.shape[:2]
    if height <= size and width <= size:
        return picture
    top, left = np.random.default_rng(seed).integers(0, (height - size + 1, width - size + 1))
    return picture[top : top + size, left : left + size]
