"""The interface between a stage (what is trained, on what, with which loss) and the one training loop."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from snapgen.config import Recipe, RecipeError, RecipeType
from snapgen.data.source import Source
from snapgen.data.sources import DataSettings
from snapgen.messages import Notify

if TYPE_CHECKING:
    from snapgen.train.cost import Cost

DISCRIMINATOR = "discriminator"  # the name of the discriminator's turn in adversarial stages


@dataclass(frozen=True)
class Context:
    """Where a stage runs: its device, process, run folder and outputs."""

    device: torch.device
    rank: int  # 0 <= rank < world
    world: int  # processes that share a batch
    run: Path  # the run folder
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]]  # (items, description, total) -> the same items, shown
    warn: Notify = lambda text: None  # shows one line about a problem that does not stop training


def derive_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) from integers such as (seed, step, rank); neighbouring numbers give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


ModelType = TypeVar("ModelType", bound=torch.nn.Module)
Network = TypeVar("Network", bound=torch.nn.Module)


class Stage(ABC, Generic[RecipeType, ModelType]):
    """What one stage adds to the loop: the trained model, its batches, loss, samples and saved folder.

    A subclass sets `recipe_type`, calls `super().__init__(recipe, context)` and sets `self.model`.
    """

    recipe_type: ClassVar[type[Recipe]]
    model: ModelType  # the trained network; the loop owns optimiser, EMA and distributed wrapping
    turns: tuple[str, ...] = ("",)  # the updates of a step, in order; adversarial stages have several, "" is last

    def __init__(self, recipe: RecipeType, context: Context) -> None:
        self.rounds = recipe.train.share(context.world)[0]  # of gradient accumulation
        self.recipe = recipe
        self.context = context

    @classmethod
    def cost(cls, recipe: RecipeType, batch: int, teacher: str | None = None) -> Cost:
        """The cost of a step with `batch` samples at a time; RecipeError from a stage that cannot say.

        teacher: the preset that the recipe's teacher is counted as; by default what its name says.
        """
        raise RecipeError(f"stage {recipe.stage!r} cannot be planned: autoencoder, flow, distill and step can")

    def open_source(self, settings: DataSettings) -> Source:
        """The recipe's pictures. The first process opens them first, so that the others find its index."""
        distributed = self.context.world > 1
        if distributed and self.context.rank > 0:
            torch.distributed.barrier()
        source = settings.open(self.context.progress)
        if distributed and self.context.rank == 0:
            torch.distributed.barrier()
        return source

    def wait_for_everyone(self) -> None:
        """Waits until all processes have called it."""
        if self.context.world > 1:
            torch.distributed.barrier()

    def place(self, network: Network) -> Network:
        """Moves `network` to the device, with its kernels stored channels-last."""
        network.to(self.context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # in place
        return network

    def local_indices(self, micro_step: int) -> range:
        """The global sample numbers of this process in `micro_step` (= step * rounds + round)."""
        share = self.recipe.train.share(self.context.world)[1]
        start = (micro_step * self.context.world + self.context.rank) * share
        return range(start, start + share)

    def share(self, step: int) -> tuple[int, slice]:
        """The size of the global micro-batch number `step`, and the slice of it that this process takes."""
        count = len(self.local_indices(step))
        return count * self.context.world, slice(count * self.context.rank, count * (self.context.rank + 1))

    @abstractmethod
    def batch(self, step: int) -> Any:
        """This process's share of the global micro-batch number `step`, on `context.device`.

        It depends only on (recipe.seed, step) and `local_indices(step)`. That makes a resume exact, and the global
        batch is the same for one process or many.
        """

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars, means over this process's share: `loss` is minimised, the others are logged.

        `model` is `self.model` wrapped for precision and distribution: call it, do not access its parts.
        The keys must be the same at every step and on every process.
        """

    def learners(self, turn: str) -> Iterable[torch.nn.Parameter]:
        """The parameters of `self.model` that `turn` updates."""
        return self.model.parameters()

    def rate(self, turn: str) -> float:
        """The factor on `train.learning_rate` in `turn`."""
        return 1.0

    def turn_loss(self, turn: str, model: torch.nn.Module, batch: Any) -> dict[str, Tensor]:
        """The loss of `turn`, in the form of `loss`; a named turn is logged as `<turn>/<name>`."""
        return self.loss(model, batch)

    @abstractmethod
    def sample_grid(self, model: ModelType) -> Image.Image | None:
        """A grid of samples. `model` is unwrapped, in eval mode, and holds the EMA weights. First process only."""

    @abstractmethod
    def save(self, model: ModelType, folder: Path) -> None:
        """Writes the diffusers or transformers folder of the unwrapped `model`, which holds the EMA weights."""

    def metrics(self, model: ModelType) -> dict[str, float]:
        """Evaluation whenever samples are made, called like `sample_grid`; logged as `eval/<name>`."""
        return {}

    def timestep_losses(self, model: ModelType) -> dict[str, list[float]]:
        """Held-out losses by noise level, called like `metrics`: "sigma", rising, and a list of that length per loss.

        Empty for a stage without noise levels. They are plotted as in Fig. 6; the mean of "loss" is logged as
        `eval/heldout`, those of the others as `eval/heldout/<name>`.
        """
        return {}
