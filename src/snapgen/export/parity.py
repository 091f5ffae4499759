"""How near a bundle is to the networks that it was made of, in torch: their calls, and whole pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from tokenizers import Tokenizer

from snapgen.export.parts import Part
from snapgen.export.targets import Floor
from snapgen.flow.noise import seeded_noise
from snapgen.losses.reconstruction import psnr
from snapgen.messages import Notify, counted
from snapgen.runtime.bundle import UNET, Bundle, Parity
from snapgen.runtime.pipeline import Arrays, BundlePipeline, Encoded, Runner

STEPS = 4  # of a picture, at most, and without guidance: full-size networks take seconds a step
CALLS_WITHOUT_TEXT = 4
EXACT = 200.0  # dB, of equal pictures

# Short and long, within and beyond what a small model knows, and with what tokenizers may stumble over.
PROMPTS = (
    "two red apples",
    "a cat",
    "a dog to the left of a frog",
    "three blue cars on a green background",
    "A Yellow Fish, and a purple butterfly!",
    "a carrot above a mushroom at sunset",
    "four strawberries",
    "a small banana beside a large rocket",
    "a photo of an elephant in the rain, 35 mm, shallow depth of field",
    "une pomme rouge et deux chats noirs",
    "ein Frosch über einem Apfel",
    "猫が一匹、青い空の下",
    "naïve café façade",
    "🍎 🍎",
    "apple apple apple",
    "x",
    "the  quick\tbrown\nfox",
    "a cat " * 40,  # longer than most encoders read
    "7 of 9; (two) [three] {four}",
    "",
)


class Recorder:
    """A part as a network of a bundle, computed by torch, which keeps every call's inputs and outputs."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.calls: list[tuple[Arrays, Arrays]] = []

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for `inputs`."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        outputs = {name: tensor.numpy() for name, tensor in self.part(tensors).items()}
        self.calls.append((inputs, outputs))
        return outputs


def measure_parity(
    bundle: Bundle,
    parts: Mapping[str, Part],
    converted: Mapping[str, Runner],
    tokenizers: Mapping[str, Tokenizer],
    notify: Notify,
) -> Parity:
    """Calls all networks with the texts of `PROMPTS`, in torch and converted, and makes pictures of the same noise.

    `bundle` describes what was converted; its own parity is not read. Without text encoders, random texts are used.
    ValueError if a network, in torch or converted, gives numbers that are not finite.
    """
    networks = {name: Recorder(part) for name, part in parts.items()}
    ours, theirs = (BundlePipeline(bundle, found, tokenizers) for found in (networks, converted))
    errors = dict.fromkeys(parts, 0.0)
    shape, steps = ours.latent_shape(None, None), min(bundle.sampling.steps, STEPS)
    decibels = []
    texts: list[str | Encoded] = list(PROMPTS)
    if not bundle.texts:
        texts = [random_text(parts[UNET], seed) for seed in range(CALLS_WITHOUT_TEXT)]
    for seed, text in enumerate(counted(texts, notify, "parity", len(texts))):
        noise = seeded_noise(seed, shape)
        if isinstance(text, str):
            picture = ours.decode(ours.denoise(text, noise, steps, guidance=1.0))
        else:
            ours.velocity(noise, 1 - seed / len(texts), text)
            ours.decode(noise)
        for name, network in networks.items():
            for inputs, outputs in network.calls:
                found = converted[name](inputs)
                if not all(np.isfinite(array[key]).all() for array in (found, outputs) for key in outputs):
                    raise ValueError(f"{name} gives numbers that are not finite: nothing was written")
                errors[name] = max(errors[name], *(relative_error(found[key], outputs[key]) for key in outputs))
            network.calls.clear()
        if isinstance(text, str):
            other = theirs.decode(theirs.denoise(text, noise, steps, guidance=1.0))
            if not np.isfinite(other).all():
                raise ValueError("pictures have numbers that are not finite: nothing was written")
            decibels.append(picture_psnr(other, picture))
    return Parity(inputs=len(texts), relative_error=errors, psnr=decibels)


def random_text(unet: Part, seed: int) -> Encoded:
    """A text of the shape of the example that `unet` was converted with."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal(unet.inputs["encoder_hidden_states"].shape, np.float32)
    pooled = None
    if "pooled_projections" in unet.inputs:
        pooled = rng.standard_normal(unet.inputs["pooled_projections"].shape, np.float32)
    return Encoded(states, np.ones(states.shape[:2], np.int64), pooled)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """`|found - expected| / |expected|`."""
    difference = found.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))


def picture_psnr(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of two decoded pictures, clipped to [-1, 1], not rounded; `EXACT` for equal ones."""
    tensors = (torch.from_numpy(picture).double().clamp(-1, 1) for picture in (one, other))
    return min(float(psnr(*tensors)), EXACT)


def check_parity(parity: Parity, floor: Floor) -> None:
    """ValueError if the bundle is further from torch than `floor`."""
    for name, error in parity.relative_error.items():
        if error > floor.relative_error:
            raise ValueError(
                f"{name} differs from torch by {error:.1e} (relative error), at most {floor.relative_error:g} is "
                "allowed: nothing was written"
            )
    if parity.psnr and (np.median(parity.psnr) < floor.psnr or min(parity.psnr) < floor.worst_psnr):
        raise ValueError(
            f"pictures differ from torch's: PSNR {min(parity.psnr):.1f} dB at worst and {np.median(parity.psnr):.1f} "
            f"dB in the median, {floor.worst_psnr:g} and {floor.psnr:g} dB are expected: nothing was written"
        )
