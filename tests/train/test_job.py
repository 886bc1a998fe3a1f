"""Whole runs: overfitting, resuming, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fcache
from fcache.config import load_recipe
from fcache.data.features import CachedFeatures
from fcache.errors import ConfigError, InterruptedJobError, WeightsError
from fcache.store.cache import StoreCache, View
from fcache.train.checkpoint import Checkpoints
from fcache.train.head import read_head
from fcache.train.job import run_training
from fcache.train.log import read_metrics
from fcache.train.recipe import read_config
from fcache.train.step import NotFiniteError
from tests.extract.making import extract
from tests.train.making import TINY, VIEW, checkpoint_bytes, tiny, train


def interrupt_at(step: int, events: list[dict[str, Any]]):
    """A report that presses Ctrl-C while a step is told of."""

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step" and event["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return report


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    timed = {"seconds", "waited_s"}
    return [
        {key: value for key, value in line.items() if key not in timed}
        for line in read_metrics(run)
        if line["kind"] == kind
    ]


@pytest.fixture(scope="module")
def unbroken(scene_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    train(scene_cache, run, steps=4, val_every=2)
    return run


def test_resumed_run_equals_an_unbroken_one_bit_for_bit(
    scene_cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    run, events = tmp_path / "run", []
    # Reported after the step, so the next one is the last.
    with pytest.raises(InterruptedJobError, match="stopped after step 2 of 4") as caught:
        train(scene_cache, run, steps=4, val_every=2, report=interrupt_at(1, events))
    assert caught.value.exit_code == 130
    assert "stopping" in [event["event"] for event in events]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000002"]
    result = train(scene_cache, run, steps=4, val_every=2)
    last = unbroken / "checkpoints" / "step-0000004"
    assert result.last.step == 4
    assert checkpoint_bytes(result.last.folder) == checkpoint_bytes(last)
    for kind in ("train", "val"):
        assert lines(run, kind) == lines(unbroken, kind)


def test_finished_run_that_is_run_again_changes_nothing(scene_cache: Path, unbroken: Path) -> None:
    before = checkpoint_bytes(unbroken / "checkpoints" / "step-0000004")
    events: list[dict[str, Any]] = []
    result = train(scene_cache, unbroken, steps=4, val_every=2, report=events.append)
    assert [event["event"] for event in events] == ["start"]
    assert result.last.step == 4
    assert checkpoint_bytes(result.last.folder) == before


def test_run_folder_tells_what_was_trained(scene_cache: Path, unbroken: Path) -> None:
    names = {path.name for path in unbroken.iterdir()} - {".lock"}
    assert names == {
        "checkpoints",
        "head.json",
        "methods.md",
        "metrics.jsonl",
        "recipe.toml",
        "reproduce.sh",
        "run.json",
        "tensorboard",
    }
    view = StoreCache(scene_cache).view()
    facts = json.loads((unbroken / "run.json").read_text())
    assert facts["stage"] == "segmenter"
    assert facts["views"] == {"train": view.key, "val": view.key}
    assert facts["labels"] == "panoptic"
    head = read_head(unbroken)
    assert head.misfits(view.identity) == []
    assert [category.name for category in head.categories] == facts["categories"]
    again = read_config(unbroken / "recipe.toml")
    assert again == tiny(steps=4, val_every=2)
    steps = [(line["kind"], line["step"]) for line in read_metrics(unbroken)]
    trained = [("train", step) for step in (1, 2, 3, 4)]
    assert steps == [*trained[:2], ("val", 2), *trained[2:], ("val", 4)]
    assert {"loss", "loss_ce", "loss_mask", "loss_dice", "lr", "grad_norm", "waited_s"} <= set(
        read_metrics(unbroken)[0]
    )
    assert list((unbroken / "tensorboard").glob("events.*"))
    assert [saved.step for saved in Checkpoints(unbroken / "checkpoints", "pq").saved()][-1] == 4
    assert not (scene_cache / "refs").exists() or not any((scene_cache / "refs").iterdir())


def test_texts_of_a_run_name_its_numbers(scene_cache: Path, unbroken: Path) -> None:
    methods = (unbroken / "methods.md").read_text()
    for told in (
        "test_vit",
        "float16",
        "12 queries",
        "4 steps of 2 clips",
        "3 videos",
        "seed is 0",
    ):
        assert told in methods
    cited = methods.split("## References")[1]
    assert "Mask2Former" not in cited.split("1.")[0]
    for number in range(1, 1 + cited.count("\n") - 2):
        assert f"[{number}]" in methods
    script = unbroken / "reproduce.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert str(scene_cache) in script.read_text()


def test_one_clip_overfits(scenes: Path, tmp_path: Path) -> None:
    video = min((scenes / "videos" / "train").glob("*.mp4"))
    extract(video, tmp_path / "cache", **{**VIEW, "size": "128x192"}, max_frames=1)
    result = train(
        tmp_path / "cache",
        tmp_path / "run",
        labels=scenes / "manifest.toml",
        val_split="train",
        steps=150,
        batch=1,
        lr=5e-3,
        milestones=[120],
        adapter_lr_factor=1.0,
        num_points=1024,
        log_every=50,
    )
    assert result.metric == "pq"
    assert (result.last.metrics or {})["pq"] > 0.9


class FromMemory:
    """Features of a view, read at once and rounded as the view rounds them."""

    whole = False

    def __init__(self, view: View) -> None:
        self.cached = CachedFeatures(view)
        self.mean, self.std, self.stride = self.cached.mean, self.cached.std, self.cached.stride
        self.clips = {video: view.read(video) for video in view.videos}
        self.empty = self.cached.empty

    def read(self, request, out) -> None:
        whole = self.clips[request.video.video_id]
        for block, mine in zip(whole.blocks, out.blocks, strict=True):
            mine[...] = block[list(request.frames)]

    def stages(self, clip, requests, pixels, dtype):
        stacked = [torch.from_numpy(np.ascontiguousarray(stage)) for stage in clip.stages]
        return [stage.to(dtype) for stage in stacked]


def test_training_on_the_cache_equals_training_from_memory_bit_for_bit(
    scene_cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = run_training(scene_cache, tiny(steps=4, val_every=2), run, features=FromMemory)
    last = unbroken / "checkpoints" / "step-0000004"
    assert checkpoint_bytes(result.last.folder) == checkpoint_bytes(last)
    assert lines(run, "val") == lines(unbroken, "val")


def test_number_of_readers_and_checkpointing_change_no_bit(
    scene_cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    result = train(
        scene_cache, tmp_path / "run", steps=4, val_every=2, num_readers=3, checkpointing=True
    )
    last = unbroken / "checkpoints" / "step-0000004"
    assert checkpoint_bytes(result.last.folder) == checkpoint_bytes(last)


def test_micro_batches_add_up_to_the_batch(scene_cache: Path, tmp_path: Path) -> None:
    whole, parts = [], []
    for micro_batch, events in ((2, whole), (1, parts)):
        train(
            scene_cache,
            tmp_path / str(micro_batch),
            steps=1,
            micro_batch=micro_batch,
            report=events.append,
        )
    losses = [next(e for e in events if e["event"] == "step")["loss"] for events in (whole, parts)]
    # Batch norm sees another micro-batch; the losses are near, and of the same divisors.
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_run_of_another_recipe_is_refused_and_the_differences_are_shown(
    scene_cache: Path, unbroken: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(scene_cache, unbroken, steps=9, val_every=2, lr=2e-3)
    assert "lr is 0.001 there and 0.002 here; steps is 4 there and 9 here" in caught.value.message
    train(scene_cache, unbroken, steps=4, val_every=1, log_every=3, num_readers=2)


def test_run_on_another_view_is_refused(scenes: Path, unbroken: Path, tmp_path: Path) -> None:
    other = tmp_path / "cache"
    extract(scenes / "manifest.toml", other, **{**VIEW, "size": "64x64"})
    with pytest.raises(ConfigError, match="is a run of another recipe: views is"):
        train(other, unbroken, steps=4, val_every=2)


def test_folder_with_other_files_is_refused(scene_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files and is no run"):
        train(scene_cache, tmp_path)


def test_nan_stops_names_step_and_clip_and_keeps_the_checkpoint(
    scene_cache: Path, tmp_path: Path
) -> None:
    class Spoiled(CachedFeatures):
        def stages(self, clip, requests, pixels, dtype):
            found = super().stages(clip, requests, pixels, dtype)
            self.count = getattr(self, "count", 0) + 1
            if self.count == 3:
                found[0] = torch.full_like(found[0], torch.nan)
            return found

    run = tmp_path / "run"
    with pytest.raises(NotFiniteError) as caught:
        run_training(scene_cache, tiny(steps=4, save_every=1), run, features=Spoiled)
    assert caught.value.message.startswith("step 2: the loss is nan, from video '")
    assert "whose stage outputs are not finite" in caught.value.message
    last = Checkpoints(run / "checkpoints", "pq").last
    assert last is not None
    assert last.step == 2
    result = train(scene_cache, run, steps=4, save_every=1)
    assert result.last.step == 4


def test_autocast_trains(scene_cache: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    train(scene_cache, tmp_path / "run", steps=2, amp="bfloat16", report=events.append)
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 2
    assert all(np.isfinite(losses))


def test_weights_of_a_run_start_another(scene_cache: Path, unbroken: Path, tmp_path: Path) -> None:
    best = unbroken / "checkpoints" / "step-0000004"
    result = train(scene_cache, tmp_path / "run", steps=1, lr=1e-12, weight_decay=0, init=best)
    before, after = load_file(best / "model.safetensors"), load_file(result.last.model)
    name = "masked_decoder.query_features.weight"
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(facts["parents"]["init"]) == 64


def test_run_that_failed_before_its_first_checkpoint_still_starts_from_init(
    scene_cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    class Spoiled(CachedFeatures):
        def stages(self, clip, requests, pixels, dtype):
            return [stage * torch.nan for stage in super().stages(clip, requests, pixels, dtype)]

    init = unbroken / "checkpoints" / "step-0000004"
    config, losses = tiny(steps=1, init=init), []

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            losses.append(event["loss"])

    with pytest.raises(NotFiniteError):
        run_training(scene_cache, config, tmp_path / "failed", features=Spoiled)
    for run in ("failed", "other"):
        run_training(scene_cache, config, tmp_path / run, report=report)
    assert losses[0] == losses[1]
    gone = tiny(steps=1, init=tmp_path / "gone.safetensors")
    with pytest.raises(ConfigError, match=r"init='.*' cannot be read: No such file"):
        run_training(scene_cache, gone, tmp_path / "other")


def test_weights_of_another_architecture_are_refused(
    scene_cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    best = unbroken / "checkpoints" / "step-0000004"
    with pytest.raises(WeightsError, match="is of another architecture"):
        train(scene_cache, tmp_path / "run", num_queries=13, init=best)
    with pytest.raises(ConfigError, match=r"is no \.safetensors file"):
        train(scene_cache, tmp_path / "run", init=tmp_path / "model.pkl")


def test_adapter_must_fit_the_backbone(scene_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapter=none hands stage outputs at strides"):
        train(scene_cache, tmp_path / "run", adapter="none")


def test_fcache_train_is_a_function_and_a_package(scene_cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    shutil.copy(Path(fcache.__file__).parent.parent / "pipelines" / "segmenter_demo.toml", recipe)
    wanted = {**TINY, "steps": 1, "milestones": [], "val_frames": 1}
    result = fcache.train(str(scene_cache), recipe, run=tmp_path / "run", **wanted)
    assert result.last.step == 1
    assert fcache.train.train is not fcache.train
    assert load_recipe(str(tmp_path / "run" / "recipe.toml"))["num_queries"] == 12


def test_unknown_setting_is_named_with_the_others() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config("segmenter_demo", {"num_querys": "3", "lr": "-1"})
    assert "'num_querys' is not a setting; nearest: num_queries" in caught.value.message
    assert "lr=-1: input should be greater than 0" in caught.value.message
    with pytest.raises(ConfigError, match="recipe 'extract' is of stage 'extract'; expected"):
        read_config("extract")


def test_second_process_in_the_same_folder_is_refused(scene_cache: Path, unbroken: Path) -> None:
    code = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); "
        "fcntl.lockf(fd, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(unbroken / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process trains in"):
            train(scene_cache, unbroken, steps=4, val_every=2)
    finally:
        holder.communicate()
