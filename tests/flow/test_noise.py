"""The noise of a seed, against torch's and against golden values that the browser's code is held to as well."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from snapgen.flow.noise import seeded_noise

# Of seed 7: the first and the last of a block's radii and angles, the next block's first, the last of all.
GOLDEN = [
    -0.8201344609260559,
    -0.8936553597450256,
    0.9265430569648743,
    1.090165138244629,
    -1.5826646089553833,
    0.754192590713501,
]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("shape", [(1, 16, 32, 24), (16,), (17,), (1, 3, 33, 31)])
def test_noise_is_that_of_torch(seed: int, shape: Sequence[int]) -> None:
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    noise = seeded_noise(seed, shape)
    assert noise.dtype == np.float32 and noise.shape == expected.shape
    np.testing.assert_allclose(noise, expected, rtol=5e-7, atol=1e-7)


def test_golden_values() -> None:
    noise = seeded_noise(7, (1, 4, 4, 4)).ravel()
    assert noise[[0, 7, 8, 15, 16, 63]].tolist() == GOLDEN


def test_too_few_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="noise of shape \\(3, 5\\) has 15 numbers, expected at least 16"):
        seeded_noise(0, (3, 5))
