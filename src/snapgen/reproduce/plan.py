"""The plan of a reproduction: its stages, their recipes, and how many steps fit into each stage's share of the time.

It is kept in `plan.json`, with what was chosen and done so far, so that an interrupted run can continue.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from snapgen.config import Recipe, Settings, read_recipe, to_yaml
from snapgen.files import JSON_LIMIT, atomic_folder, read_whole, write_text
from snapgen.machine.device import default_device, device_name
from snapgen.messages import first_mistake, one_line
from snapgen.train.stages import load_recipe

SHARES = {  # of the time, relative to each other, in the order of training
    "autoencoder": 3.0,  # good early, but it limits everything after it
    "text": 1.5,  # small, and good early
    "nouns": 0.5,  # the beginning of `flow`: things and their colours
    "layout": 0.8,  # then the layout, at high noise
    "flow": 7.0,  # improves for as long as it is trained
    "teacher": 8.0,  # so does the teacher, at six times the work per step
    "distill": 5.0,  # continues `flow`
    "step": 2.5,  # most of the gain comes in the first few hundred steps
}
EVALUATION = 2.0  # the share of the evaluation
OPTIONAL = ("teacher", "distill", "step")
KEPT = ("autoencoder", "text")  # provided by the model that `flow` continues from, or by other folders, if given
OPENING = ("nouns", "layout")  # each continues from the one before, and `flow` from the last
CAPPED = (*KEPT, *OPENING)  # good early: they get the steps of their recipes, or fewer if time is short
SAMPLINGS = 4  # how often a stage makes sample grids and held-out losses
CHECKPOINT_SECONDS = 60.0  # between checkpoints, the most that a kill costs; longer if they would exceed the next
CHECKPOINT_SHARE = 0.05  # the largest share of the time for checkpoints
SCHEDULE = ("steps", "warmup_steps", "sample_every", "checkpoint_every")  # settings of `train` that a `StagePlan` sets
CHOSEN = (  # recipe settings that the plan and the order of the stages decide
    *(f"train.{name}" for name in SCHEDULE),
    *("autoencoder", "text", "cache", "initial", "teacher"),
)


StageName = Annotated[str, Field(pattern=f"^({'|'.join(SHARES)})$")]
PartName = Annotated[str, Field(pattern=f"^({'|'.join([*SHARES, 'evaluation'])})$")]


class StagePlan(Settings):
    """How long a stage is trained, and the measurements behind that."""

    steps: int = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    sample_every: int = Field(gt=0)  # steps
    checkpoint_every: int = Field(gt=0)  # steps
    device: str  # where the rest was measured
    seconds_per_step: float
    seconds_once: float  # for the setup, and for saving the model
    seconds_each: float  # for samples, evaluation and a checkpoint
    seconds_given: float  # of the budget
    late: bool  # no time was left: it gets the minimum number of steps

    @property
    def schedule(self) -> dict[str, int]:
        """The settings of the recipe's section `train` that are decided here."""
        return {name: getattr(self, name) for name in SCHEDULE}


class Plan(Settings):
    """The request for a reproduction, and its progress."""

    name: str  # of the recipes
    minutes: float = Field(gt=0)
    stages: tuple[StageName, ...]
    initial: str | None = None  # the model whose UNet `flow` continues from, with its autoencoder and text encoder
    given: dict[str, str] = {}  # model folders by stage (of KEPT), used instead of training the stage
    # Prompts per category of the scenes suite; fid and psnr take five times as many. None: as many as the time left
    # allows. If set, the evaluation takes the time that it needs, on top of the minutes.
    count: int | None = Field(default=None, ge=2)
    overrides: tuple[str, ...] = ()  # "stage.key=value", or "all.key=value" for every stage
    chosen: dict[StageName, StagePlan] = {}
    finished: tuple[StageName, ...] = ()
    spent: dict[str, float] = {}  # seconds, per stage and for "evaluation"
    running: tuple[PartName, float] | None = None  # the part in progress, and when it began, in seconds since 1970

    @property
    def command(self) -> str:
        """The `snapgen` command that makes the same plan, except for `count`."""
        without = [stage for stage in OPTIONAL if stage not in self.stages]
        options = [("--minutes", f"{self.minutes:g}")]
        options += [("--initial", self.initial)] if self.initial is not None else []
        options += [(f"--{stage}", folder) for stage, folder in self.given.items()]
        options += [("--without", ",".join(without))] if without else []
        options += [("--set", override) for override in self.overrides]
        return shlex.join(["snapgen", "reproduce", self.name, *(word for option in options for word in option)])

    @property
    def seconds_left(self) -> float:
        """The rest of the budget; time of the part in progress is not yet subtracted."""
        return max(0.0, 60 * self.minutes - sum(self.spent.values()))

    def share(self, stage: str) -> float:
        """The fraction of the time left that `stage` gets, in (0, 1]."""
        waiting = sum(SHARES[other] for other in self.stages if other not in self.finished)
        return SHARES[stage] / (waiting + (EVALUATION if self.count is None else 0.0))


def choose_stages(without: Iterable[str], initial: str | None = None, given: Iterable[str] = ()) -> tuple[str, ...]:
    """All stages except those, those `given` and those that `initial` provides; ValueError if others need one."""
    skipped = set(without)
    if wrong := sorted(skipped - set(OPTIONAL)):
        raise ValueError(f"--without {wrong[0]}: only {', '.join(OPTIONAL)} can be skipped")
    if ("teacher" in skipped) != ("distill" in skipped):
        raise ValueError("--without: teacher and distill are of no use without each other; skip teacher,distill")
    skipped.update(given)
    if initial is not None:
        skipped.update((*KEPT, *OPENING))
    return tuple(stage for stage in SHARES if stage not in skipped)


# The folder and its plan.json


def start(folder: Path, recipes: Path, plan: Plan) -> None:
    """Makes `folder` with the plan and its stages' merged recipes; ValueError if it exists or a recipe is missing."""
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
    for stage in plan.stages:  # mistakes show before the first stage, not after hours
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
        return Plan.model_validate_json(read_whole(folder / "plan.json", JSON_LIMIT))
    except (OSError, ValueError) as error:
        reason = first_mistake(error) if isinstance(error, ValidationError) else one_line(error)
        raise ValueError(f"{folder} holds no reproduction to continue: {reason}") from None


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes the plan of `folder` atomically."""
    write_text(plan.model_dump_json(indent=1), folder / "plan.json")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Locks `folder` against other processes; ValueError while another holds the lock."""
    try:
        with FileLock(folder.resolve() / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{folder} is in use by another snapgen reproduce: wait for it, or stop it") from None


# The stages' recipes


def stage_recipe(recipes: Path, plan: Plan, stage: str, **schedule: int) -> Recipe:
    """The recipe of `stage` in `recipes`, with inputs from earlier stages and `schedule` in its section `train`."""
    own = [override.partition(".")[2] for override in plan.overrides if override.startswith(("all.", f"{stage}."))]
    fixed = [f"{key}={path}" for key, path in stage_inputs(plan, stage).items()]
    file = recipes / f"{stage}.yaml"
    chosen = [f"train.{key}={value}" for key, value in schedule.items()]
    return load_recipe(file, [*own, *fixed, *chosen])


def stage_inputs(plan: Plan, stage: str) -> dict[str, str]:
    """The inputs of `stage` by recipe key: paths relative to the reproduction's folder."""
    if stage in KEPT:
        return {}
    paths = {part: f"{part}/model" if plan.initial is None else plan.initial for part in KEPT} | plan.given
    if stage not in OPENING:
        paths["cache"] = "latents"
    learners = [other for other in (*OPENING, "flow") if other in plan.stages]  # each continues from the one before
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
    """How long a stage takes on this machine, in seconds."""

    step: float
    once: float  # for the setup, and for saving the model
    each: float  # for samples, evaluation and a checkpoint
    measuring: float  # for measuring all this


def fit_steps(
    stage: str, recipe: Recipe, cost: Cost, given: float, fewest: int, done: int = 0, warmup_steps: int | None = None
) -> StagePlan:
    """Plans `stage`: the `done` steps plus as many as fit into the `given` seconds, at least the `fewest`.

    `warmup_steps` are those of a run that has begun; they stay as they are.
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
