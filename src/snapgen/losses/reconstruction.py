"""Losses and metrics of an autoencoder. Pictures are B 3 H W in [-1, 1]; losses are scalar means."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gradient_loss(prediction: torch.Tensor, target: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """Mean absolute error of horizontal and vertical finite differences, at `scales` scales, each half the last.

    It rewards sharp edges where mean squared error tolerates blur. Height and width must be at least 2^scales.
    """
    total = prediction.new_zeros(())
    for scale in range(scales):
        if scale:
            prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
        error = prediction - target
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total / scales


def kl_loss(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, averaged over elements."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def psnr(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture, shape B; the prediction is clamped to [-1, 1]."""
    error = (prediction.clamp(-1, 1) - target).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4.0 / error)  # the peak-to-peak range is 2
