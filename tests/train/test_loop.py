"""The training loop, run for real on a tiny stage: resume, processes, signals, refusals, what a run leaves behind."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.processes import run_two, start
from support.regression import RegressionRecipe, RegressionStage, make_recipe

from snapgen.config import RecipeError, TrainSettings
from snapgen.files import sha256
from snapgen.train.loop import learning_rate, train
from snapgen.train.stage import Context, derive_seed
from snapgen.weights import load_file, save_file_atomic

WORKER = str(Path(__file__).parents[1] / "support" / "regression.py")


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The recorded lines without the only value that is a matter of time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def leftovers(run: Path) -> list[Path]:
    return list(run.rglob(".tmp-*"))


def same_run(one: Path, other: Path) -> None:
    """Asserts bit-identical metrics, model, EMA and optimiser state."""
    assert metrics_of(one) == metrics_of(other)
    newest = sorted((one / "checkpoints").iterdir())[-1].name
    for file in ("model", "ema", "optimizer"):
        path = Path("checkpoints") / newest / f"{file}.safetensors"
        assert sha256(one / path) == sha256(other / path), file
    assert sha256(one / "model" / "model.safetensors") == sha256(other / "model" / "model.safetensors")


def test_a_run_leaves_what_the_contract_says(tmp_path: Path) -> None:
    recipe = make_recipe({"keep_checkpoints": 1, "sample_every": 6})
    run = tmp_path / "run"

    assert train(RegressionStage, recipe, run, resume=False) == run / "model"

    assert RegressionRecipe.model_validate_json(json.dumps(yaml.safe_load((run / "recipe.yaml").read_text()))) == recipe
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    expected = {"step", "loss", "absolute", "grad_norm", "learning_rate", "samples_per_second"}
    assert all(expected <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "eval/weight" in line] == [6, 12]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000012"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_00000006.png", "step_00000012.png"]
    assert Image.open(run / "plots" / "loss.png").width > 100
    assert list((run / "tensorboard").glob("events.*"))
    origin = json.loads((run / "model" / "provenance.json").read_text())
    assert origin["step"] == 12
    assert origin["recipe"] == recipe.model_dump(mode="json")
    assert origin["versions"]["torch"] == version("torch")
    assert origin["files"] == {"model.safetensors": sha256(run / "model" / "model.safetensors")}
    assert leftovers(run) == []


def test_loss_falls_and_the_saved_model_is_the_average(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(RegressionStage, make_recipe({"steps": 150, "batch_size": 32, "sample_every": 150}), run, resume=False)
    losses = [line["loss"] for line in metrics_of(run)]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    averaged = load_file(run / "checkpoints" / "step_00000150" / "ema.safetensors")
    saved = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in averaged.items())


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: signal.Signals,
    status: int,
) -> None:
    recipe = make_recipe({"gradient_accumulation": 2, "schedule": "cosine", "warmup_steps": 3}, dropout=0.3)
    train(RegressionStage, recipe, tmp_path / "whole", resume=False)

    before = signal.getsignal(kind)
    monkeypatch.setattr(RegressionStage, "signals", {14: kind})  # in the first round of the eighth step
    with pytest.raises(SystemExit) as stopped:
        train(RegressionStage, recipe, tmp_path / "parts", resume=False)
    assert stopped.value.code == status
    lines = f"{kind.name}: stopping with a checkpoint after this step, exit status {status}\n"
    assert f"{lines}stopped after step 8 with a checkpoint; --resume continues\n" in capfd.readouterr().err
    assert signal.getsignal(kind) == before
    assert sorted(path.name for path in (tmp_path / "parts/checkpoints").iterdir())[-1] == "step_00000008"
    monkeypatch.setattr(RegressionStage, "signals", {})
    train(RegressionStage, recipe, tmp_path / "parts", resume=True)

    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_during_the_last_write_ends_the_process_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `snapgen reproduce` would start the next stage after a signal to stop."""
    save = RegressionStage.save

    def interrupted(stage: RegressionStage, model: torch.nn.Module, folder: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(stage, model, folder)

    monkeypatch.setattr(RegressionStage, "save", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train(RegressionStage, make_recipe(), tmp_path, resume=False)
    assert stopped.value.code == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    recipe = make_recipe(dropout=0.3)
    train(RegressionStage, recipe, tmp_path / "whole", resume=False)

    parts = tmp_path / "parts"
    command = [sys.executable, WORKER, str(parts), recipe.model_dump_json(), f"8:{int(signal.SIGKILL)}"]
    # The order of a sum depends on the number of threads: bit-identity needs the same one.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert metrics_of(parts)[-1]["step"] == 8  # three steps past the checkpoint, which the resume drops
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    (parts / "checkpoints" / ".tmp-1-step_00000009").mkdir()
    train(RegressionStage, recipe, parts, resume=True)

    same_run(tmp_path / "whole", parts)
    assert leftovers(parts) == []


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    recipe = make_recipe({"gradient_accumulation": 2})
    train(RegressionStage, recipe, tmp_path / "one", resume=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", WORKER]
    subprocess.run([*command, str(tmp_path / "two"), recipe.model_dump_json()], check=True)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for here, there in zip(one, two, strict=True):
        assert there == pytest.approx(here, rel=1e-4, abs=1e-6)


def test_resume_without_checkpoint_starts_anew(tmp_path: Path) -> None:
    train(RegressionStage, make_recipe(), tmp_path / "run", resume=True)
    train(RegressionStage, make_recipe(), tmp_path / "whole", resume=False)
    same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_resume_past_a_damaged_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(RegressionStage, make_recipe(), tmp_path / "whole", resume=False)
    train(RegressionStage, make_recipe({"steps": 10}), tmp_path / "run", resume=False)
    damaged = tmp_path / "run" / "checkpoints" / "step_00000010" / "ema.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])

    train(RegressionStage, make_recipe(), tmp_path / "run", resume=True)

    errors = capfd.readouterr().err
    assert "step_00000010 is damaged (ema.safetensors)" in errors
    assert "after step 5" in errors
    same_run(tmp_path / "whole", tmp_path / "run")


def test_run_folders_that_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(RegressionStage, make_recipe({"steps": 5}), run, resume=False)
    with pytest.raises(RecipeError, match=r"holds checkpoints: continue it with --resume or give another --out"):
        train(RegressionStage, make_recipe(), run, resume=False)
    with pytest.raises(RecipeError, match=r"changed: hidden \(16 -> 8\), train.learning_rate \(0.02 -> 0.1\); "):
        train(RegressionStage, make_recipe({"learning_rate": 0.1}, hidden=8), run, resume=True)
    with pytest.raises(RecipeError, match=r"at step 5 already, past train.steps 3"):
        train(RegressionStage, make_recipe({"steps": 3}), run, resume=True)
    intervals = {"log_every": 3, "sample_every": 4, "checkpoint_every": 2, "keep_checkpoints": 3}
    train(RegressionStage, make_recipe({"steps": 8} | intervals), run, resume=True)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step_00000005", "step_00000006", "step_00000008"]


def test_steps_that_would_spoil_the_weights_are_skipped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three infinite steps: the weights stand still, their moments too, and the run continues."""
    run = tmp_path / "run"
    train(RegressionStage, make_recipe({"checkpoint_every": 1}, explode_at=6, explode_for=3), run, resume=False)
    lines = metrics_of(run)
    assert [line.get("skipped", 0) for line in lines] == [0] * 6 + [1, 2, 3] + [3] * 3
    assert [line["loss"] is None for line in lines] == [False] * 6 + [True] * 3 + [False] * 3
    assert all(math.isfinite(line["grad_norm"]) for line in lines if line["loss"] is not None)
    assert "step 7 is skipped: loss is inf (1 so far)" in capfd.readouterr().err
    assert Image.open(run / "plots" / "loss.png").width > 100

    keep_all = {"checkpoint_every": 1, "keep_checkpoints": 12}
    train(RegressionStage, make_recipe(keep_all, explode_at=6, explode_for=3), tmp_path / "all", resume=False)
    before, after = (
        {
            file: load_file(tmp_path / "all" / "checkpoints" / f"step_{step:08d}" / f"{file}.safetensors")
            for file in ("model", "ema", "optimizer")
        }
        for step in (6, 10)
    )
    assert sorted(path.name[-2:] for path in (tmp_path / "all" / "checkpoints").iterdir()) == [
        f"{step:02d}" for step in (1, 2, 3, 4, 5, 6, 10, 11, 12)
    ]
    assert int(after["optimizer"]["0.weight/step"]) == int(before["optimizer"]["0.weight/step"]) + 1
    for file, tensors in before.items():
        assert not all(torch.equal(after[file][name], tensor) for name, tensor in tensors.items()), file


def test_a_skipped_step_leaves_no_trace_in_running_statistics(tmp_path: Path) -> None:
    """Those of batch normalisation here; the magnitudes of losses (Eq. 7) in distillation."""
    train(RegressionStage, make_recipe({"steps": 10}, explode_at=6, explode_for=3, dropout=0.1), tmp_path, resume=False)
    saved = load_file(tmp_path / "checkpoints" / "step_00000010" / "model.safetensors")
    assert int(saved["1.num_batches_tracked"]) == 7


def test_a_due_checkpoint_waits_for_a_step_that_counts(tmp_path: Path) -> None:
    """Step 5, at which one is due, is skipped, and so is step 6."""
    train(RegressionStage, make_recipe(explode_at=4, explode_for=2), tmp_path, resume=False)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000010", "step_00000012"]
    train(RegressionStage, make_recipe({"keep_checkpoints": 9}, explode_at=4, explode_for=2), tmp_path / "all", False)
    assert sorted(path.name for path in (tmp_path / "all" / "checkpoints").iterdir())[0] == "step_00000007"


def test_an_exploding_loss_is_left_out(tmp_path: Path) -> None:
    settings = {"steps": 70, "sample_every": 70, "checkpoint_every": 70}
    run = tmp_path / "run"
    train(RegressionStage, make_recipe(settings, explode_at=60, explode_for=2, explode_by=100.0), run, resume=False)
    assert [line["step"] for line in metrics_of(run) if line.get("skipped") == 1] == [61]
    assert metrics_of(run)[-1]["skipped"] == 2


def test_too_many_in_a_row_stop_the_run_with_the_evidence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = make_recipe({"max_skipped": 3}, explode_at=7)
    with pytest.raises(ValueError, match=r"^step 10: loss is inf; skipped steps in a row: 3, and") as stopped:
        train(RegressionStage, recipe, run, resume=False)
    assert str(stopped.value).endswith(
        f"training stopped without a checkpoint; the last good checkpoint is {run}/checkpoints/step_00000005, "
        f"the evidence in {run}/failure: "
        "look at the data, or start anew with a lower train.learning_rate"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000005"]
    assert metrics_of(run)[-1]["step"] == 9
    report = json.loads((run / "failure" / "failure.json").read_text())
    assert (report["step"], report["objection"], report["metrics"]["loss"]) == (10, "loss is inf", "inf")
    batch = load_file(run / "failure" / "batch.safetensors")
    assert sorted(tensor.shape for tensor in batch.values()) == [(8, 1), (8, 4)]


def test_what_was_skipped_is_part_of_a_resume(tmp_path: Path) -> None:
    run, explode = tmp_path / "run", {"explode_at": 6, "explode_for": 2}
    train(RegressionStage, make_recipe({"steps": 10}, **explode), run, resume=False)
    train(RegressionStage, make_recipe(**explode), run, resume=True)
    assert [line.get("skipped", 0) for line in metrics_of(run)] == [0] * 6 + [1] + [2] * 5


def test_a_run_that_ends_in_skipped_steps_fails(tmp_path: Path) -> None:
    """Fewer than `max_skipped` of them: no checkpoint, no model, the evidence."""
    run = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"^step 12: loss is inf; skipped steps in a row: 2, and the run ended "
    ) as end:
        train(RegressionStage, make_recipe(explode_at=10), run, resume=False)
    assert f"the last good checkpoint is {run}/checkpoints/step_00000010, the evidence in" in str(end.value)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000005", "step_00000010"]
    assert not (run / "model").exists()
    with pytest.raises(ValueError, match=r"^step 12: .*; skipped steps in a row: 1, .*; there is no checkpoint"):
        train(RegressionStage, make_recipe({"checkpoint_every": 99}, explode_at=11), tmp_path / "one", resume=False)


@pytest.mark.parametrize(("kind", "error"), [(signal.SIGTERM, ValueError), (signal.SIGINT, SystemExit)])
def test_a_signal_during_skipped_steps_writes_no_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: signal.Signals,
    error: type[BaseException],
) -> None:
    monkeypatch.setattr(RegressionStage, "signals", {7: kind})
    with pytest.raises(error) as stopped:
        train(RegressionStage, make_recipe(explode_at=6, explode_for=3), tmp_path, resume=False)
    line = (
        f"stopped after step 8, which was skipped: no checkpoint was written; the last good checkpoint is {tmp_path}/"
    )
    assert line in f"{stopped.value}{capfd.readouterr().err}"
    assert kind == signal.SIGTERM or stopped.value.code == 130  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


@pytest.mark.parametrize(("steps", "every", "step"), [(3, 1, 1), (3, 99, 3), (99, 5, 5)])
def test_ruined_weights_are_not_written(tmp_path: Path, steps: int, every: int, step: int) -> None:
    """They are finite, and so are their losses: only the weights say that the run is over."""
    recipe = make_recipe({"learning_rate": 1e6, "weight_decay": 0, "steps": steps, "checkpoint_every": every})
    with pytest.raises(
        ValueError,
        match=rf"^step {step}: the weights are ruined: 0.weight holds a value of \d.*e\+06; training stopped ",
    ):
        train(RegressionStage, recipe, tmp_path, resume=False)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("steps", [3, 99])
def test_a_first_step_that_ruins_everything_leaves_nothing(tmp_path: Path, steps: int) -> None:
    recipe = make_recipe({"learning_rate": 1e30, "steps": steps, "checkpoint_every": 2})
    with pytest.raises(
        ValueError, match=r"^step .*; there is no checkpoint, the evidence in .*lower train.learning_rate$"
    ):
        train(RegressionStage, recipe, tmp_path, resume=False)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"learning_rate": 1e30}, {"learning_rate": 1e6, "weight_decay": 0}])
def test_two_processes_agree_that_the_weights_are_ruined(tmp_path: Path, settings: dict[str, float]) -> None:
    recipe = make_recipe(settings | {"steps": 3, "checkpoint_every": 2})
    assert run_two(train, RegressionStage, recipe, tmp_path, False) == [1, 1]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("file", "name"), [("model", "0.bias"), ("ema", "4.weight"), ("optimizer", "0.bias/exp_avg")])
def test_a_ruined_checkpoint_is_no_start(tmp_path: Path, file: str, name: str) -> None:
    """Of an earlier version, say, or edited; its hashes are right."""
    train(RegressionStage, make_recipe(), tmp_path, resume=False)
    folder = tmp_path / "checkpoints" / "step_00000012"
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[0] = math.nan
    save_file_atomic(tensors, path)
    state = json.loads((folder / "state.json").read_text())
    state["files"][path.name] = sha256(path)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        ValueError, match=rf"^checkpoint .*step_00000012 is ruined: {name} holds a value of nan; remove it"
    ):
        train(RegressionStage, make_recipe(), tmp_path, resume=True)


@pytest.mark.slow
def test_killed_at_random_moments_twenty_times(tmp_path: Path) -> None:
    """SIGKILL whenever it comes, in the middle of writing a checkpoint too: the end is the same to the bit."""
    recipe = make_recipe({"steps": 800, "checkpoint_every": 2, "sample_every": 400, "schedule": "cosine"}, dropout=0.3)
    train(RegressionStage, recipe, tmp_path / "whole", resume=False)

    parts, random = tmp_path / "parts", np.random.default_rng(0)
    kills, reached = 0, 0
    while kills < 20:
        process = start(train, RegressionStage, recipe, parts, True)
        # Once it has written something, after a moment of its own
        at = reached
        while at <= reached and process.is_alive():
            time.sleep(0.01)
            at = max((int(path.name[5:]) for path in (parts / "checkpoints").glob("step_*")), default=0)
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "finished before it was killed twenty times"
        kills, reached = kills + 1, at
    train(RegressionStage, recipe, parts, resume=True)

    same_run(tmp_path / "whole", parts)
    assert leftovers(parts) == []


@pytest.mark.slow
def test_resumed_on_another_number_of_processes(tmp_path: Path) -> None:
    train(RegressionStage, make_recipe(), tmp_path / "whole", resume=False)
    assert run_two(train, RegressionStage, make_recipe({"steps": 6}), tmp_path / "run", False) == [0, 0]
    train(RegressionStage, make_recipe(), tmp_path / "run", resume=True)
    for here, there in zip(metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "run"), strict=True):
        here, there = ({key: value for key, value in line.items() if "eval" not in key} for line in (here, there))
        assert there == pytest.approx(here, rel=1e-4, abs=1e-6)


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    """The checkpoint before it stays whole, and a resume continues from there."""
    recipe = make_recipe({"steps": 6}, hidden=4000)  # 4 times 100 kB a file
    run = tmp_path / "run"
    train(RegressionStage, recipe, run, resume=False)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(
            ValueError, match=r"^checkpoint .*step_00000010 could not be written: .*; .*--resume"
        ) as full:
            train(RegressionStage, make_recipe(hidden=4000), run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"File too large: '{run}/checkpoints/step_00000010/model.safetensors'" in str(full.value)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000005", "step_00000006"]
    train(RegressionStage, make_recipe(hidden=4000), run, resume=True)


def test_compilation_and_recomputation_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"train.activation_checkpointing: Sequential has no blocks to recompute"):
        train(RegressionStage, make_recipe({"activation_checkpointing": True}), tmp_path / "a", resume=False)
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    train(RegressionStage, make_recipe({"compile": True}), tmp_path / "compiled", resume=False)
    train(RegressionStage, make_recipe(), tmp_path / "plain", resume=False)
    for here, there in zip(metrics_of(tmp_path / "compiled"), metrics_of(tmp_path / "plain"), strict=True):
        assert there == pytest.approx(here, rel=1e-4, abs=1e-6)


def test_precisions_follow_each_other_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snapgen.train.loop.gains_by_bfloat16", lambda device: False)
    train(RegressionStage, make_recipe({"precision": "bf16"}), tmp_path / "bf16", resume=False)
    hint = "snapgen: warning: this processor is faster in fp32: --set train.precision=fp32"
    assert capfd.readouterr().err.count(hint) == 1
    train(RegressionStage, make_recipe(), tmp_path / "fp32", resume=False)
    assert hint not in capfd.readouterr().err
    low, full = metrics_of(tmp_path / "bf16"), metrics_of(tmp_path / "fp32")
    assert low != full
    assert low[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    assert load_file(tmp_path / "bf16" / "model" / "model.safetensors")["0.weight"].dtype == torch.float32


def test_batches_are_split_over_processes(tmp_path: Path) -> None:
    recipe = make_recipe({"batch_size": 12, "gradient_accumulation": 2})

    def share(rank: int, world: int, micro_step: int) -> list[int]:
        context = Context(torch.device("cpu"), rank, world, tmp_path, lambda items, description, total: items)
        return list(RegressionStage(recipe, context).local_indices(micro_step))

    assert share(0, 1, 3) == list(range(18, 24))
    assert share(0, 2, 3) + share(1, 2, 3) == share(0, 1, 3)
    with pytest.raises(RecipeError, match=r"train.batch_size 12 .* 2 x 4 processes: make it a multiple of 8"):
        share(0, 4, 0)


def test_derived_seeds_differ() -> None:
    seeds = {derive_seed(seed, step, rank) for seed in range(10) for step in range(100) for rank in range(4)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


@pytest.mark.parametrize(
    ("schedule", "done", "factor"),
    [
        ("constant", 0, 1 / 5),  # warm-up over 4 steps: 1/5 ... 4/5, then 1
        ("constant", 3, 4 / 5),
        ("constant", 4, 1.0),
        ("constant", 99, 1.0),
        ("linear", 4, 1.0),
        ("linear", 52, 0.5),
        ("linear", 100, 0.0),
        ("cosine", 4, 1.0),
        ("cosine", 28, 0.5 + math.sqrt(0.125)),
        ("cosine", 52, 0.5),
        ("cosine", 100, 0.0),
    ],
)
def test_learning_rate(schedule: Any, done: int, factor: float) -> None:
    settings = TrainSettings(steps=100, batch_size=1, learning_rate=0.3, warmup_steps=4, schedule=schedule)
    assert learning_rate(done, settings) == pytest.approx(0.3 * factor, abs=1e-12)


def test_learning_rate_when_warm_up_is_all_there_is() -> None:
    settings = TrainSettings(steps=4, batch_size=1, learning_rate=0.5, warmup_steps=4, schedule="cosine")
    assert [learning_rate(done, settings) for done in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
