"""The whole job on a small set that is rendered here: what a user would type, run for real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcache.demo.scene import render_set
from fcache.errors import FcacheError

NUM_TRAIN, NUM_VAL, NUM_FRAMES = 8, 4, 20
HEIGHT, WIDTH, FPS = 240, 416, 12
EXTRACT = (
    "model=vit_small_patch14_dinov2",
    "weights=random:0",
    "compute_dtype=float32",
    "short_side=224",
    "long_side_max=none",
)
# Twice what the commonest layout of the training frames scores on the validation frames (0.164).
LEAST_PQ = 0.33


def run_demo(folder: Path) -> None:
    """Renders videos and runs every command on them, checking what each one makes.

    Args:
        folder: Where everything goes; what a run before left there is used again.

    Raises:
        FcacheError: a command failed, an artefact is missing, or a score is no better than a
            guess.
    """
    started = time.monotonic()
    videos, cache, picture = folder / "videos", folder / "cache", folder / "probe.png"
    if not (videos / "manifest.toml").exists():
        _say(f"rendering {NUM_TRAIN + NUM_VAL} videos of {NUM_FRAMES} frames into {videos}")
        render_set(
            videos,
            num_train=NUM_TRAIN,
            num_val=NUM_VAL,
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            fps=FPS,
            seed=0,
        )
    manifest = str(videos / "manifest.toml")
    _run("extract", manifest, "--cache", str(cache), "--first", "1", *EXTRACT)
    _run("extract", manifest, "--cache", str(cache), *EXTRACT)
    _run("ls", str(cache))
    _run("info", str(cache))
    _run("verify", str(cache))
    result = _json("probe", str(cache), "--picture", str(picture))
    for path in (cache / "zarr.json", picture, folder / "cache.first.png"):
        if not path.exists():
            raise FcacheError(f"the demo did not make '{path}'.")
    miou, prior = float(result["miou"]), float(result["prior_miou"])
    if not miou > 2 * prior:
        raise FcacheError(
            f"the probe reaches mIoU {miou:.3f}, the class prior {prior:.3f}; expected at least "
            "twice as much."
        )
    pq = _train_segmenter(cache, folder / "runs" / "segmenter")
    maps = folder / "predictions"
    _run("predict", str(folder / "runs" / "segmenter"), "--cache", str(cache), "--out", str(maps))
    if not (maps / "pred.json").exists():
        raise FcacheError(f"the demo did not make '{maps / 'pred.json'}'.")
    _say(
        f"done in {time.monotonic() - started:.0f} s: probe mIoU {miou:.3f} (class prior "
        f"{prior:.3f}), segmenter PQ {pq:.3f}"
    )


def _train_segmenter(cache: Path, run: Path) -> float:
    """Returns the PQ on the validation videos."""
    result = _json("train", "recipe=segmenter_demo", "--cache", str(cache), "--run", str(run))
    for name in ("recipe.toml", "metrics.jsonl", "reproduce.sh", "methods.md", "checkpoints"):
        if not (run / name).exists():
            raise FcacheError(f"the demo did not make '{run / name}'.")
    pq = float(result["metrics"]["pq"])
    if not pq > LEAST_PQ:
        raise FcacheError(f"the segmenter reaches PQ {pq:.3f}; expected more than {LEAST_PQ}.")
    return pq


def _say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "fcache", *words]


def _run(*words: str) -> None:
    print(f"\n$ fcache {' '.join(words)}", flush=True)
    code = subprocess.run(_command(words), check=False).returncode
    if code:
        raise FcacheError(f"'fcache {' '.join(words)}' ended with exit code {code}; expected 0.")


def _json(*words: str) -> dict[str, Any]:
    print(f"\n$ fcache {' '.join(words)} --json", flush=True)
    done = subprocess.run(_command([*words, "--json"]), check=False, stdout=subprocess.PIPE)
    if done.returncode:
        raise FcacheError(f"'fcache {' '.join(words)}' ended with exit code {done.returncode}.")
    content: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(content, indent=2))
    return content
