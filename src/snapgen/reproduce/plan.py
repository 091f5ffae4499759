"""What a reproduction is asked for: its stages, the recipe of each, and how many steps fit into its share of the time.

All of it stands in `plan.json`, beside what was chosen and done so far, so that an interrupted run continues.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from snapgen.config import Recipe, Settings, read_recipe, to_yaml
from snapgen.files import atomic_folder, write_text
from snapgen.machine.device import default_device, device_name
from snapgen.messages import one_line
from snapgen.train.stages import load_recipe

SHARES = {  # of the time, relative to each other, in the order of training
    "autoencoder": 3.0,  # good early, but all that follows is bound by it
    "text": 1.5,  # small, and good early
    "nouns": 0.5,  # what `flow` begins with: things and their colours,
    "layout": 0.8,  # then, at high noise, what stands where
    "flow": 7.0,  # gains for as long as it is trained
    "teacher": 8.0,  # so does this one, at six times the work per step
    "distill": 5.0,  # continues `flow`
    "step": 2.5,  # most of the gain comes in the first few hundred steps
}
EVALUATION = 2.0  # the scores' share
OPTIONAL = ("teacher", "distill", "step")
KEPT = ("autoencoder", "text")  # what a model that `flow` continues brings along, or another folder gives
OPENING = ("nouns", "layout")  # each continues the one before, and `flow` the last
CAPPED = (*KEPT, *OPENING)  # good early: they get the steps of their recipes, or as many as there is time for
SAMPLINGS = 4  # sample grids and held-out losses of a stage
CHECKPOINT_SECONDS = 60.0  # between checkpoints: the most that a kill costs; more where they would take a larger
CHECKPOINT_SHARE = 0.05  # of the time than this
SCHEDULE = ("steps", "warmup_steps", "sample_every", "checkpoint_every")  # settings of `train` that a `StagePlan` has
CHOSEN = (  # settings of recipes that the plan and the order of the stages decide
    *(f"train.{name}" for name in SCHEDULE),
    *("autoencoder", "text", "cache", "initial", "teacher"),
)


class StagePlan(Settings):
    """How long a stage is trained, and from which measurement that follows."""

    steps: int = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    sample_every: int = Field(gt=0)  # steps
    checkpoint_every: int = Field(gt=0)  # steps
    device: str  # on which the rest was measured
    seconds_per_step: float
    seconds_once: float  # to set up, and to save the model
    seconds_each: float  # to sample, evaluate and write a checkpoint
    seconds_given: float  # of the budget
    late: bool  # there was no time left: it gets the fewest steps

    @property
    def schedule(self) -> dict[str, int]:
        """The settings of the recipe's section `train` that are decided here."""
        return {name: getattr(self, name) for name in SCHEDULE}


class Plan(Settings):
    """What a reproduction was asked for, and how far it is."""

    name: str  # of the recipes
    minutes: float = Field(gt=0)
    stages: tuple[str, ...]
    initial: str | None = None  # whose UNet `flow` continues, on its autoencoder and text encoder
    given: dict[str, str] = {}  # model folders, by stage (of KEPT), that are taken instead of training it
    # Prompts per category of the scenes; fid and psnr take five times as many. None: what the time left allows. If it
    # is set, the scores take the time that they take, beyond the minutes.
    count: int | None = Field(default=None, ge=2)
    overrides: tuple[str, ...] = ()  # "stage.key=value", or "all.key=value" for every stage
    chosen: dict[str, StagePlan] = {}
    finished: tuple[str, ...] = ()
    spent: dict[str, float] = {}  # seconds, by stage and for "evaluation"
    running: tuple[str, float] | None = None  # what was begun and has not ended, and when, in seconds since 1970

    @property
    def command(self) -> str:
        """The call of `snapgen` that plans the same, but for `count`."""
        without = [stage for stage in OPTIONAL if stage not in self.stages]
        options = [("--minutes", f"{self.minutes:g}")]
        options += [("--initial", self.initial)] if self.initial is not None else []
        options += [(f"--{stage}", folder) for stage, folder in self.given.items()]
        options += [("--without", ",".join(without))] if without else []
        options += [("--set", override) for override in self.overrides]
        return shlex.join(["snapgen", "reproduce", self.name, *(word for option in options for word in option)])

    @property
    def seconds_left(self) -> float:
        """What is left of the budget; the part that is running does not count yet."""
        return max(0.0, 60 * self.minutes - sum(self.spent.values()))

    def share(self, stage: str) -> float:
        """The part of the time left that is for `stage`, in (0, 1]."""
        waiting = sum(SHARES[other] for other in self.stages if other not in self.finished)
        return SHARES[stage] / (waiting + (EVALUATION if self.count is None else 0.0))


def choose_stages(without: Iterable[str], initial: str | None = None, given: Iterable[str] = ()) -> tuple[str, ...]:
    """All stages but those, those `given`, and what `initial` brings along; ValueError for one that others need."""
    skipped = set(without)
    if wrong := sorted(skipped - set(OPTIONAL)):
        raise ValueError(f"--without {wrong[0]}: only {', '.join(OPTIONAL)} can be left out")
    if ("teacher" in skipped) != ("distill" in skipped):
        raise ValueError("--without: teacher and distill are of no use without each other; leave out teacher,distill")
    skipped.update(given)
    if initial is not None:
        skipped.update((*KEPT, *OPENING))
    return tuple(stage for stage in SHARES if stage not in skipped)


# The folder and its plan.json


def start(folder: Path, recipes: Path, plan: Plan) -> None:
    """Makes `folder` with the plan and its stages' recipes, merged; ValueError if it is there or one is missing."""
    if folder.exists():
        raise ValueError(f"{folder} is there already: continue it with --resume or give another --out")
    for stage in plan.stages:
        if not (recipes / f"{stage}.yaml").is_file():
            raise ValueError(
                f"there is no recipe {recipes / stage}.yaml: run this in a checkout of the repository, or name a "
                "folder of recipes with --recipes"
            )
    for override in plan.overrides:
        stage, _, setting = override.partition(".")
        if stage not in ("all", *plan.stages):
            stages = ", ".join(plan.stages)
            raise ValueError(f"--set {override}: expected STAGE.key=value with a stage of {stages}, or all")
        if setting.partition("=")[0] in CHOSEN:
            raise ValueError(f"--set {override}: reproduce chooses {', '.join(CHOSEN)} by itself")
    for stage in plan.stages:  # a mistake shows before the first stage, not after hours
        stage_recipe(recipes, plan, stage)
    with atomic_folder(folder) as temporary:
        (temporary / "recipes").mkdir()
        for stage in plan.stages:
            name = f"{stage}.yaml"
            write_text(to_yaml(read_recipe(recipes / name).settings), temporary / "recipes" / name)
        write_plan(plan, temporary)


def read_plan(folder: Path) -> Plan:
    """The plan in `folder`; ValueError if there is none."""
    try:
        return Plan.model_validate_json((folder / "plan.json").read_text())
    except (OSError, ValidationError) as error:
        raise ValueError(f"{folder} holds no reproduction that goes on: {one_line(error)}") from None


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes the plan of `folder`, whole or not at all."""
    write_text(plan.model_dump_json(indent=1), folder / "plan.json")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `folder`; ValueError while one is in it."""
    try:
        with FileLock(folder.resolve() / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{folder} is in use by another snapgen reproduce: wait for it, or stop it") from None


# The stages' recipes


def stage_recipe(recipes: Path, plan: Plan, stage: str, **schedule: int) -> Recipe:
    """The recipe of `stage` in `recipes`, on the results of the stages before it; `schedule` in its section `train`."""
    own = [override.partition(".")[2] for override in plan.overrides if override.startswith(("all.", f"{stage}."))]
    fixed = [f"{key}={path}" for key, path in stage_inputs(plan, stage).items()]
    file = recipes / f"{stage}.yaml"
    chosen = [f"train.{key}={value}" for key, value in schedule.items()]
    return load_recipe(file, [*own, *fixed, *chosen])


def stage_inputs(plan: Plan, stage: str) -> dict[str, str]:
    """What `stage` builds on, by the keys of its recipe: paths relative to the reproduction's folder."""
    if stage in KEPT:
        return {}
    paths = {part: f"{part}/model" if plan.initial is None else plan.initial for part in KEPT} | plan.given
    if stage not in OPENING:
        paths["cache"] = "latents"
    learners = [other for other in (*OPENING, "flow") if other in plan.stages]  # each continues the one before
    if stage in learners[1:]:
        paths["initial"] = f"{learners[learners.index(stage) - 1]}/model"
    elif stage == "flow" and plan.initial is not None:
        paths["initial"] = plan.initial
    if stage == "distill":
        paths |= {"initial": "flow/model", "teacher": "teacher/model"}
    if stage == "step":
        student = "distill" if "distill" in plan.stages else "flow"
        paths |= {"initial": f"{student}/model", "teacher": f"{student}/model"}
    return paths


# Steps


@dataclass(frozen=True)
class Cost:
    """What a stage takes on this machine, in seconds."""

    step: float
    once: float  # to set up, and to save the model
    each: float  # to sample, evaluate and write a checkpoint
    measuring: float  # all of this


def fit_steps(
    stage: str, recipe: Recipe, cost: Cost, given: float, fewest: int, done: int = 0, warmup_steps: int | None = None
) -> StagePlan:
    """The steps of `stage` that fit into the `given` seconds, at least the `fewest`, after those that are `done`.

    `warmup_steps` are those of a run that has begun, which stay as they are.
    """
    interval = max(CHECKPOINT_SECONDS, cost.each / CHECKPOINT_SHARE)
    free = given - cost.measuring - cost.once - SAMPLINGS * cost.each
    fitting = int(free / (cost.step * (1 + cost.each / interval)))
    steps = done + max(fewest, fitting)
    if stage in CAPPED:
        steps = max(done, min(steps, recipe.train.steps))
    return StagePlan(
        steps=steps,
        warmup_steps=min(recipe.train.warmup_steps, steps // 10) if warmup_steps is None else warmup_steps,
        sample_every=math.ceil(steps / SAMPLINGS),
        checkpoint_every=max(1, min(steps, int(interval / cost.step))),
        device=device_name(default_device()),
        seconds_per_step=cost.step,
        seconds_once=cost.once,
        seconds_each=cost.each,
        seconds_given=given,
        late=fitting < fewest,
    )
