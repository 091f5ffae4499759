"""The one training loop. It handles steps, accumulation, precision, processes, EMA, checkpoints, logs and resume.
The stage decides what is trained, on what data and with which loss (`snapgen.train.stage`).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor

from snapgen.config import Recipe, RecipeError, RecipeType, TrainSettings, complete_recipe, to_yaml
from snapgen.files import atomic_file, atomic_folder, remove_leftovers
from snapgen.machine.memory import keep_freed_memory
from snapgen.machine.precision import gains_by_bfloat16
from snapgen.messages import one_line
from snapgen.train.distribution import distribute, hollow_copy, is_first_process, make_accelerator, whole
from snapgen.train.guard import Guard, save_evidence
from snapgen.train.health import ailment
from snapgen.train.optimizer import check_shardable, make_optimizer
from snapgen.train.report import Display, Report
from snapgen.train.stage import Context, ModelType, Stage, derive_seed
from snapgen.train.state import (
    Checkpoint,
    TrainState,
    check_same_recipe,
    checkpoint_folders,
    checkpoint_name,
    make_ema,
    name_last_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from snapgen.weights import provenance, system_errors

STOP_SIGNALS = {signal.SIGTERM: 0, signal.SIGINT: 130}  # signal -> exit status after the checkpoint
REMEDY = "look at the data, or start anew with a lower train.learning_rate"


def train(stage_type: type[Stage[RecipeType, ModelType]], recipe: RecipeType, run: Path, resume: bool) -> Path:
    """Trains a stage in the folder `run` and returns the folder of the finished model, `run/model`.

    Errors: RecipeError for a recipe or run folder that cannot be used, ValueError when training diverges.
    SIGTERM and Ctrl-C write a checkpoint at the end of the step, then exit (SystemExit 0 and 130). After a skipped step
    they write none (ValueError and SystemExit 130).
    """
    # Processes and precision
    settings, content = recipe.train, recipe.model_dump(mode="json")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # the loop shows its own
    accelerator = make_accelerator(settings)
    main = accelerator.is_main_process
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        display = stack.enter_context(closing(Display(enabled=main)))
        if settings.precision == "bf16" and not gains_by_bfloat16(accelerator.device):
            display.line("snapgen: warning: this processor is faster in fp32: --set train.precision=fp32")

        # Run folder
        checkpoint = open_run(run, recipe, resume, display)
        accelerator.wait_for_everyone()  # all processes must look before the first one writes
        if main:
            prepare_run(run, content)

        # Stage, model, optimiser, moving average
        torch.manual_seed(recipe.seed)
        context = Context(
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
            run,
            display.track,
            lambda text: print(f"snapgen: warning: {text}", file=sys.stderr, flush=True),  # from any process
        )
        if accelerator.is_fsdp2:
            check_shardable(settings)
        stage = stage_type(recipe, context)
        prepare_network(stage.model, settings)
        hollow = hollow_copy(stage.model) if accelerator.is_fsdp2 else None
        optimizer = make_optimizer(stage.model, settings)
        model = distribute(accelerator, stage.model, optimizer, partial=len(stage.turns) > 1)
        state = TrainState(stage.model, optimizer, make_ema(stage.model, settings), Guard(settings), hollow)
        start = 0
        if checkpoint is not None:
            state.load(checkpoint)
            start = checkpoint.step
            if found := ailment(accelerator, state.tensors()):
                raise ValueError(
                    f"checkpoint {checkpoint.folder} is ruined: {found}; remove it to continue from the one before"
                )
            display.line(f"resuming {run} after step {start}")
        report = stack.enter_context(closing(Report(run, settings, start, display))) if main else None
        caught = stack.enter_context(stop_signals(insist=accelerator.num_processes == 1, announce=main))
        due = False  # whether a checkpoint is to be written as soon as no step is skipped

        # Steps
        for done in range(start, settings.steps):
            step, started = done + 1, time.monotonic()
            torch.manual_seed(derive_seed(recipe.seed, done, accelerator.process_index))
            metrics, stopping, objection = train_step(accelerator, stage, model, state, done, caught)
            if objection is not None:
                display.line(f"snapgen: warning: step {step} is skipped: {objection} ({state.guard.skipped} so far)")
            seconds = time.monotonic() - started
            metrics["samples_per_second"] = settings.batch_size / seconds
            last = step == settings.steps

            # Samples, then the record, then the checkpoint: what precedes a checkpoint is on disk before it
            sampling = last or step % settings.sample_every == 0
            if sampling:
                with state.averaged() as averaged:
                    if report is not None:
                        # Not compiled: shapes differ here, and compiling each takes minutes
                        with torch.compiler.set_stance("force_eager"):
                            metrics |= evaluate(stage, averaged, report, step)
            if report is not None:
                report.step(step, metrics, seconds)
                if sampling:
                    report.plot()
            due = due or last or stopping is not None or step % settings.checkpoint_every == 0
            if due and objection is None:
                if found := ailment(accelerator, state.tensors()):
                    raise ValueError(
                        f"step {step}: the weights are ruined: {found}; training stopped without a checkpoint; "
                        f"{name_last_checkpoint(run, step)}: {REMEDY}"
                    )
                write_checkpoint(run, state, step, content, settings.keep_checkpoints)
                due = False
            if stopping is not None:
                accelerator.wait_for_everyone()
                if objection is not None:
                    text = f"stopped after step {step}, which was skipped: no checkpoint was written"
                    text = f"{text}; {name_last_checkpoint(run, step)}"
                    if stopping is signal.SIGTERM:
                        raise ValueError(text)
                    display.line(text)
                    sys.exit(STOP_SIGNALS[stopping])
                display.line(f"stopped after step {step} with a checkpoint; --resume continues")
                sys.exit(STOP_SIGNALS[stopping])

        # Finished model, without the precision wrapper, which cannot be copied
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        save_model(run, stage, state, content)
        accelerator.wait_for_everyone()
        if caught:  # a signal came meanwhile: a caller that trains several stages must not start the next
            sys.exit(STOP_SIGNALS[min(caught)])
    return run / "model"


def train_step(
    accelerator: Accelerator,
    stage: Stage[RecipeType, ModelType],
    model: torch.nn.Module,
    state: TrainState[ModelType],
    done: int,
    caught: set[signal.Signals],
) -> tuple[dict[str, float], signal.Signals | None, str | None]:
    """One step after `done` others: one optimiser update in each of the stage's turns.

    Returns its metrics, the signal on which all processes agree to stop, and, if it was skipped, the reason.
    """
    settings: TrainSettings = stage.recipe.train
    rate = learning_rate(done, settings)
    metrics: dict[str, float] = {}
    stopping, objection = None, None
    statistics = [(buffer, buffer.clone()) for buffer in stage.model.buffers()]  # which forward passes update
    for number, turn in enumerate(stage.turns):
        if len(stage.turns) > 1:
            only_train(state.optimizer, stage.learners(turn))
        index = done * len(stage.turns) + number
        found, signaled, batch = forward_backward(accelerator, stage, model, state, turn, index, caught)
        prefix = f"{turn}/" if turn else ""
        metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        stopping = stopping or signaled
        objection = state.guard.objection(metrics)

        # Update, unless the guard objects
        parameters = stage.model.parameters()
        # `foreach` is its default, except for shards, which it would clip one by one.
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip, foreach=True)).item()
        metrics[f"{prefix}grad_norm"] = grad_norm
        objection = objection or state.guard.objection(metrics)
        if objection is not None:
            break
        for group in state.optimizer.param_groups:
            group["lr"] = rate * stage.rate(turn)
        state.optimizer.step()
    metrics = {"loss": math.nan} | metrics | {"learning_rate": rate}  # the last turn may not have been reached

    # Outcome of the whole step
    if objection is None:
        state.average()
        state.guard.accept(metrics["loss"])
        return metrics | ({"skipped": state.guard.skipped} if state.guard.skipped else {}), stopping, None
    for buffer, before in statistics:
        buffer.copy_(before)
    if state.guard.skip() or done + 1 == settings.steps:
        run, where = stage.context.run, ""
        if accelerator.is_main_process:
            where = f", the evidence in {save_evidence(run, done + 1, objection, metrics, batch)}"
        in_a_row, end = state.guard.in_a_row, "the run ended" if done + 1 == settings.steps else "training stopped"
        raise ValueError(
            f"step {done + 1}: {objection}; skipped steps in a row: {in_a_row}, and {end} without a checkpoint; "
            f"{name_last_checkpoint(run, done + 1)}{where}: {REMEDY}"
        )
    return metrics | {"skipped": state.guard.skipped}, stopping, objection


def forward_backward(
    accelerator: Accelerator,
    stage: Stage[RecipeType, ModelType],
    model: torch.nn.Module,
    state: TrainState[ModelType],
    turn: str,
    index: int,
    caught: set[signal.Signals],
) -> tuple[dict[str, float], signal.Signals | None, Any]:
    """Computes the gradients of turn number `index`; returns its losses, the signal to stop on, and the last batch."""
    rounds = stage.rounds

    # Gradients are exchanged only in the last round
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number in range(rounds):
        batch = stage.batch(index * rounds + number)
        with nullcontext() if number == rounds - 1 else accelerator.no_sync(model):
            parts = stage.turn_loss(turn, model, batch)
            accelerator.backward(parts["loss"] / rounds)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / rounds

    # Means over the processes; the signals are shared too, so that all stop after the same step
    flags = [torch.tensor(float(number in caught), device=accelerator.device) for number in STOP_SIGNALS]
    means = accelerator.reduce(torch.stack([*sums.values(), *flags]), "mean").tolist()
    stopping = next((number for number, flag in zip(STOP_SIGNALS, means[len(sums) :], strict=True) if flag), None)
    return dict(zip(sums, means, strict=False)), stopping, batch


def only_train(optimizer: torch.optim.Optimizer, learners: Iterable[torch.nn.Parameter]) -> None:
    """Gives gradients to `learners` only; the optimiser skips parameters that have none."""
    chosen = set(learners)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(parameter in chosen)


def evaluate(stage: Stage[RecipeType, ModelType], averaged: ModelType, report: Report, step: int) -> dict[str, float]:
    """Adds samples and loss curves of the averaged model to `report`; returns its evaluation."""
    report.samples(step, stage.sample_grid(averaged))
    metrics = {f"eval/{name}": value for name, value in stage.metrics(averaged).items()}
    if curves := stage.timestep_losses(averaged):
        means = {name: sum(curve) / len(curve) for name, curve in curves.items() if name != "sigma"}
        metrics["eval/heldout"] = means.pop("loss")
        metrics |= {f"eval/heldout/{name}": mean for name, mean in means.items()}
        report.timesteps(step, curves)
    return metrics


def write_checkpoint(run: Path, state: TrainState[ModelType], step: int, content: dict[str, Any], keep: int) -> None:
    """Calls `save_checkpoint`; a full or missing disk becomes a one-line ValueError."""
    try:
        save_checkpoint(run, state, step, content, keep)
    except OSError as error:
        raise ValueError(
            f"checkpoint {run / 'checkpoints' / checkpoint_name(step)} could not be written: {one_line(error)}; "
            "those before it are intact: make room, then continue with --resume"
        ) from error


def learning_rate(done: int, settings: TrainSettings) -> float:
    """The learning rate of the step after `done` others: linear warm-up, then constant or falling to 0 at `steps`."""
    if done < settings.warmup_steps:
        return settings.learning_rate * (done + 1) / (settings.warmup_steps + 1)  # no step is wasted on a rate of 0
    progress = (done - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return settings.learning_rate * factor[settings.schedule]


def prepare_network(network: torch.nn.Module, settings: TrainSettings) -> None:
    """Switches on training mode, and activation checkpointing and compilation if the recipe asks for them."""
    network.train()
    if settings.activation_checkpointing:
        able = [part for part in network.modules() if getattr(part, "_supports_gradient_checkpointing", False)]
        if not able:
            raise RecipeError(
                f"train.activation_checkpointing: {type(network).__name__} has no blocks to recompute; leave it out"
            )
        for part in able:
            part.enable_gradient_checkpointing()  # type: ignore[operator]
    if settings.compile:
        network.compile()


def open_run(run: Path, recipe: Recipe, resume: bool, display: Display) -> Checkpoint | None:
    """The checkpoint to continue from, if any; RecipeError if `run` must not be written to. Changes nothing."""
    if not resume:
        if checkpoint_folders(run):
            raise RecipeError(f"{run} already holds checkpoints: continue it with --resume or give another --out")
        return None
    checkpoint = newest_checkpoint(run, lambda text: display.line(f"snapgen: warning: {text}"))
    if checkpoint is not None:
        check_same_recipe(complete_recipe(type(recipe), checkpoint.recipe), recipe.model_dump(mode="json"), run)
        if checkpoint.step > recipe.train.steps:
            raise RecipeError(f"{run} is at step {checkpoint.step} already, past train.steps {recipe.train.steps}")
    return checkpoint


def prepare_run(run: Path, content: dict[str, Any]) -> None:
    """Makes the run folder, removes half-written files of a killed attempt, and writes recipe.yaml."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    for folder in (run, run / "checkpoints", run / "samples", run / "plots"):
        remove_leftovers(folder)
    with atomic_file(run / "recipe.yaml") as temporary:
        temporary.write_text(to_yaml(content), encoding="utf-8")


def save_model(
    run: Path, stage: Stage[RecipeType, ModelType], state: TrainState[ModelType], content: dict[str, Any]
) -> None:
    """Writes `run/model` with the EMA weights, and beside them `provenance.json`, which says where they came from.

    The first process writes; all must call it.
    """
    with state.averaged() as averaged:
        if not is_first_process():
            return
        try:
            with atomic_folder(run / "model") as folder, system_errors():
                stage.save(averaged, folder)
                origin = provenance(folder, content, step=content["train"]["steps"])
                (folder / "provenance.json").write_text(json.dumps(origin, indent=1))
        except OSError as error:
            raise ValueError(
                f"the finished model could not be written: {one_line(error)}; "
                "the last checkpoint is intact: make room, then --resume writes it"
            ) from error


@contextmanager
def stop_signals(insist: bool, announce: bool) -> Iterator[set[signal.Signals]]:
    """Collects SIGTERM and Ctrl-C in the set it yields, instead of exiting; with `announce`, a line says so.

    With `insist`, a second signal of the same kind acts as usual. Under a launcher it must not: the terminal and the
    launcher both pass Ctrl-C on, and the second would interrupt the checkpoint.
    """
    caught: set[signal.Signals] = set()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        caught.add(signal.Signals(number))
        if announce:
            status = STOP_SIGNALS[signal.Signals(number)]
            line = f"{signal.Signals(number).name}: stopping with a checkpoint after this step, exit status {status}\n"
            os.write(2, line.encode())  # standard error; print may be what was interrupted
        if insist:
            signal.signal(number, before[signal.Signals(number)])

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
