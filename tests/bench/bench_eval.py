"""What scoring costs, beside the published scripts' way of doing it.

    python tests/bench/bench_eval.py [--official JSON] [--frames 24] [--videos 5] [--rounds 3]
                                     [--folder DIR] [--only speed|memory|workers]

Writes a synthetic VIPSeg and VSPW set of the shape of the recorded official run (480 x 854, about
30 segments a frame on both sides), checks fcache's scores against the plain way of computing them
(``plain_scores``, which does what the scripts do), and times both in one process. With the
official run's JSON, frames per CPU second are also set beside its figures; as that ran elsewhere,
the ratio of both machines' PNG decoding is printed with it. Then the peak memory of a long video,
and two processes against one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from fcache.data.scored_panoptic import PanopticFiles, PanopticVideo, vipseg_videos
from fcache.data.scored_semantic import SemanticVideo, semantic_videos
from fcache.eval.job import score_videos
from fcache.eval.vps import VideoPanopticScores
from fcache.eval.vss import VideoSemanticQuality
from fcache.manifest import Category, load_manifest
from tests.bench import plain_scores
from tests.bench.timing import Verdict, alternate, table
from tests.eval.folders import names, save_ids, save_labels, write_predictions, write_vipseg

HEIGHT, WIDTH = 480, 854
NUM_STUFF, NUM_THINGS = 14, 17
WINDOWS = (1, 2, 4, 6)
CLIPS = (8, 16)
FOLDERS = (
    "vps/truth/{}", "vps/prediction/pan_pred/{}", "vss/truth/data/{}/mask", "vss/prediction/{}",
)  # fmt: skip
REPEATS = 20  # of the set in the run on two processes: as many frames as a third of VIPSeg's val


@cache
def categories() -> list[Category]:
    """VIPSeg's, by ascending id as the scripts number them."""
    return sorted(load_manifest("vipseg").categories, key=lambda category: category.id)


class Scene:
    """A video of ellipses that move over a drifting floor of cells, and a prediction of it."""

    def __init__(self, rng: np.random.Generator) -> None:
        known = categories()
        stuff = [category.id for category in known if not category.isthing]
        things = [category.id for category in known if category.isthing]
        self.cells = rng.uniform(0, 1, (NUM_STUFF, 2)) * [HEIGHT, WIDTH]
        self.places = rng.uniform(0.05, 0.95, (NUM_THINGS, 2)) * [HEIGHT, WIDTH]
        self.speeds = rng.normal(0, 3, (NUM_STUFF + NUM_THINGS, 2))
        self.radii = rng.uniform(15, 70, (NUM_THINGS, 2))
        drawn = (
            rng.choice(stuff, NUM_STUFF, replace=False),
            rng.choice(things, NUM_THINGS, replace=True),
        )
        self.truth = np.concatenate(drawn)
        # One in six segments is predicted as another category.
        wrong = rng.uniform(size=len(self.truth)) < 1 / 6
        self.guess = np.where(wrong, np.roll(self.truth, 1), self.truth)
        self.ids = rng.choice(np.arange(1, 1 << 24), (2, len(self.truth)), replace=False)
        self.shift = rng.normal(0, 6, (len(self.truth), 2))
        self.rng = rng

    def frame(self, t: int, *, predicted: bool) -> np.ndarray:  # [height, width] segment index
        """The segments of a frame; predicted ones lie off and have ragged edges."""
        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        off = self.shift if predicted else np.zeros_like(self.shift)
        moved = t * self.speeds + off
        near = np.full((HEIGHT, WIDTH), np.inf, np.float32)
        segments = np.zeros((HEIGHT, WIDTH), np.int64)
        for index, (row, column) in enumerate(self.cells + moved[:NUM_STUFF]):
            away = (y - np.float32(row)) ** 2 + (x - np.float32(column)) ** 2
            segments[away < near] = index
            np.minimum(near, away, out=near)
        wave = 4 * np.sin(x / 9 + t) * predicted
        for index, (row, column) in enumerate(self.places + moved[NUM_STUFF:]):
            high, wide = self.radii[index]
            row, column = row % HEIGHT, column % WIDTH
            inside = ((y + wave - row) / high) ** 2 + ((x - column) / wide) ** 2 < 1
            segments[inside] = NUM_STUFF + index
        if not predicted:
            segments[:12] = -1  # void
        return segments


def write(root: Path, num_videos: int, num_frames: int) -> None:
    """Writes both sets; VSPW's labels are the categories of VIPSeg's segments."""
    rng = np.random.default_rng(0)
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    folders = (root / "vps/truth", root / "vps/prediction/pan_pred")
    semantic = (root / "vss/truth/data/{}/mask", root / "vss/prediction/{}")
    for number in range(num_videos):
        scene, video = Scene(rng), f"{number}_video"
        for side, folder, flat, ids, kinds in zip(
            sides, folders, semantic, scene.ids, (scene.truth, scene.guess), strict=True
        ):
            predicted = side is sides[1]
            frames = side[video] = {}
            for t, name in enumerate(names(num_frames)):
                segments = scene.frame(t, predicted=predicted)
                shown, areas = np.unique(segments[segments >= 0], return_counts=True)
                frames[name] = [
                    {"id": int(ids[i]), "category_id": int(kinds[i]), "area": int(n), "iscrowd": 0}
                    for i, n in zip(shown, areas, strict=True)
                ]
                known = segments >= 0
                save_ids(folder / video / f"{name}.png", np.where(known, ids[segments], 0))
                labels = np.where(known, kinds[segments] + (not predicted), 255).astype(np.uint8)
                save_labels(Path(str(flat).format(video)) / f"{name}.png", labels)
    write_vipseg(root / "vps/truth.json", sides[0])
    write_predictions(root / "vps/prediction", sides[1])
    (root / "vss/truth/val.txt").write_text("\n".join(sides[0]) + "\n")


def open_vps(root: Path) -> tuple[PanopticVideo, ...]:
    """The panoptic set."""
    prediction = root / "vps/prediction"
    return vipseg_videos(
        PanopticFiles(root / "vps/truth.json", root / "vps/truth"),
        PanopticFiles(prediction / "pred.json", prediction / "pan_pred"),
    ).videos


def open_vss(root: Path) -> list[SemanticVideo]:
    """The semantic set."""
    return semantic_videos(
        load_manifest("vspw"), root / "vss/truth", root / "vss/prediction", "val"
    )


def score_vps(root: Path, num_workers: int = 1, times: int = 1) -> tuple[float, float]:
    """VPQ over four k, and STQ, of the set taken some times over."""
    make = partial(VideoPanopticScores, categories())
    result = score_videos(open_vps(root) * times, make, num_workers=num_workers).result()
    return result.vpq.vpq, result.stq.stq


def score_vss(root: Path, num_workers: int = 1, times: int = 1) -> tuple[float, ...]:
    """mIoU, weighted IoU, VC8 and VC16 of the set taken some times over."""
    make = partial(VideoSemanticQuality, categories(), offset=1)
    result = score_videos(open_vss(root) * times, make, num_workers=num_workers).result()
    return result.miou, result.weighted_iou, *result.consistency.vc.values()


def plain_videos(root: Path) -> list[dict[str, Any]]:
    """The panoptic set as ``plain_scores`` takes it."""
    truth = json.loads((root / "vps/truth.json").read_text())["annotations"]
    guess = json.loads((root / "vps/prediction/pred.json").read_text())["annotations"]
    videos = []
    for left, right in zip(truth, guess, strict=True):
        files = [row["file_name"] for row in left["annotations"]]
        videos.append(
            {
                "truth": [root / "vps/truth" / left["video_id"] / name for name in files],
                "prediction": [
                    root / "vps/prediction/pan_pred" / left["video_id"] / name for name in files
                ],
                "truth_rows": [row["segments_info"] for row in left["annotations"]],
                "prediction_rows": [row["segments_info"] for row in right["annotations"]],
            }
        )
    return videos


def plain_vps(root: Path) -> tuple[float, float]:
    """VPQ over four k, and STQ, the scripts' way."""
    things = {category.id for category in categories() if category.isthing}
    videos = plain_videos(root)
    return (
        float(np.mean([plain_scores.vpq(videos, k) for k in WINDOWS])),
        plain_scores.stq(videos, things),
    )


def plain_vss(root: Path) -> tuple[float, ...]:
    """mIoU, weighted IoU, VC8 and VC16, the scripts' way."""
    videos = [
        tuple(
            [folder / f"{name}.png" for name in video.names]
            for folder in (video.truth, video.prediction)
        )
        for video in open_vss(root)
    ]
    return (
        *plain_scores.semantic(videos),
        *(plain_scores.consistency(videos, n) for n in CLIPS),
    )


def _files(video: SemanticVideo, folder: Path) -> list[Path]:
    return [folder / f"{name}.png" for name in video.names]


def decode(root: Path) -> None:
    """Reads each panoptic PNG once."""
    for path in sorted((root / "vps").rglob("*.png")):
        plain_scores.read_ids(path)


def lengthen(root: Path, scratch: Path, num_frames: int) -> Path:
    """Writes sets of one video whose frames are those of the first over and over, as links."""
    root, to = root.absolute(), scratch / f"long_{num_frames}"
    truth = json.loads((root / "vps/truth.json").read_text())["annotations"][0]
    guess = json.loads((root / "vps/prediction/pred.json").read_text())["annotations"][0]
    video = truth["video_id"]
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for t, name in enumerate(names(num_frames)):
        for side, rows in zip(sides, (truth["annotations"], guess["annotations"]), strict=True):
            side[name] = rows[t % len(rows)]["segments_info"]
    write_vipseg(to / "vps/truth.json", {video: sides[0]})
    write_predictions(to / "vps/prediction", {video: sides[1]})
    (to / "vss/truth").mkdir(parents=True)
    (to / "vss/truth/val.txt").write_text(video)
    for folder in FOLDERS:
        place = to / folder.format(video)
        place.mkdir(parents=True)
        files = sorted((root / folder.format(video)).glob("*.png"))
        for t, name in enumerate(names(num_frames)):
            (place / f"{name}.png").symlink_to(files[t % len(files)])
    return to


def inside(root: Path, kind: str) -> None:
    """Scores a set and prints the peak memory of this process, KiB."""
    score_vps(root) if kind == "vps" else score_vss(root)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def peak(root: Path, kind: str) -> int:
    """Peak memory, KiB, of a process of its own."""
    words = [sys.executable, __file__, "--inside", str(root), kind]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def cost(case: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and CPU seconds of this process and its children."""
    before = os.times()
    case()
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


def run(root: Path, options: argparse.Namespace) -> list[Verdict]:
    """Checks, then times."""
    num_frames = options.videos * options.frames
    for name, ours, plain in (
        ("VPQ, STQ", score_vps(root), plain_vps(root)),
        ("mIoU, wIoU, VC", score_vss(root), plain_vss(root)),
    ):
        if not np.allclose(ours, plain, rtol=0, atol=1e-12):
            raise SystemExit(f"{name}: {ours} is not {plain}")
        print(f"{name}: {', '.join(f'{value:.6f}' for value in ours)}, as the plain way")
    times = alternate(
        {
            "vps": lambda _: score_vps(root),
            "plain vps": lambda _: plain_vps(root),
            "vss": lambda _: score_vss(root),
            "plain vss": lambda _: plain_vss(root),
            "decode": lambda _: decode(root),
        },
        options.rounds,
        warm_up=0,
    )
    speed = {name: 1e3 * num_frames / timing.cpu_ms for name, timing in times.items()}
    for name, value in speed.items():
        print(f"{name}: {value:.1f} frames per CPU second")
    verdicts = [
        Verdict(
            "VPQ + STQ against the plain way, CPU",
            times["vps"].cpu_speed_against(times["plain vps"]),
            10,
        ),
        Verdict(
            "mIoU + VC against the plain way, CPU",
            times["vss"].cpu_speed_against(times["plain vss"]),
            3,
        ),
    ]
    if options.official is not None:
        verdicts += against(json.loads(options.official.read_text())["results"], speed)
    return verdicts


def against(official: dict[str, Any], speed: dict[str, float]) -> list[Verdict]:
    """Our speeds beside the recorded run's."""

    def theirs(*names: str) -> float:
        return 120 / sum(official[name]["cpu_s"] for name in names)

    machine = speed["decode"] / theirs("png_decode_only_gt+pred_once")
    note = f"this machine decodes {machine:.2f}x as fast as the recorded one"
    vps = speed["vps"] / theirs("VPQ_total", "STQ")
    vss = speed["vss"] / theirs("mIoU_wIoU", "VC8", "VC16")
    return [
        Verdict("VPQ + STQ against the recorded run, CPU", vps, 10, note=note),
        Verdict("  the same, at equal decoding speed", vps / machine, 10),
        Verdict("mIoU + VC against the recorded run, CPU", vss, 3, note=note),
        Verdict("  the same, at equal decoding speed", vss / machine, 3),
    ]


def memory(root: Path) -> list[Verdict]:
    """Memory of long videos."""
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        roots = [lengthen(root, Path(folder), num_frames) for num_frames in (200, 2000)]
        for kind in ("vps", "vss"):
            short, long = (peak(place, kind) for place in roots)
            note = f"{long / 1024:.1f} over {short / 1024:.1f} MiB"
            what = f"{kind}: peak at 2,000 frames over 200"
            verdicts.append(Verdict(what, long / short, 1.05, at_most=True, note=note))
    return verdicts


def workers(root: Path) -> list[Verdict]:
    """Two processes against one."""
    verdicts = []
    for kind, score in (("vss", score_vss), ("vps", score_vps)):
        one, two = (cost(partial(score, root, n, REPEATS)) for n in (1, 2))
        what = f"{kind}: two processes against one"
        note = f"{one[0]:.1f} s and {two[0]:.1f} s on the clock"
        verdicts.append(Verdict(what, one[0] / two[0], 1.8, note=note))
        note = f"CPU {one[1]:.1f} s and {two[1]:.1f} s: what two idle cores would give at best"
        verdicts.append(Verdict("  by CPU", 2 * one[1] / two[1], note=note))
    return verdicts


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", type=Path)
    parser.add_argument("--videos", type=int, default=5)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the set lies, or is written and kept")
    parser.add_argument("--only", choices=["speed", "memory", "workers"])
    options = parser.parse_args()
    parts = {"speed": partial(run, options=options), "memory": memory, "workers": workers}
    with tempfile.TemporaryDirectory() as scratch:
        root = options.folder or Path(scratch)
        if not (root / "vss").is_dir():
            write(root, options.videos, options.frames)
        chosen = [options.only] if options.only else list(parts)
        verdicts = [verdict for name in chosen for verdict in parts[name](root)]
    print(table(verdicts))


if __name__ == "__main__":
    main()
