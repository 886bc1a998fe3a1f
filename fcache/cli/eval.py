"""``fcache eval``: scores of predictions, as the published scripts compute them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fcache.cli.output import Progress
from fcache.errors import ConfigError, FcacheError, InterruptedJobError

if TYPE_CHECKING:
    from fcache.cli.eval_report import Report
    from fcache.eval.job import FramePairs, Score
    from fcache.manifest import Board, Category, Manifest
    from fcache.manifest.published import Task

    S = TypeVar("S", bound=Score)

SCRATCH = "fcache-eval-"

app = typer.Typer(
    help="Score predictions: video panoptic, video semantic, image panoptic.",
    no_args_is_help=True,
)

Prediction = Annotated[Path, typer.Argument(help="A submission: its folder, or the zip of it.")]
ManifestName = Annotated[
    str, typer.Option("--manifest", help="Says where labels lie; a shipped one, or a file.")
]
Split = Annotated[str, typer.Option("--split", help="Which split of the data set.")]
TruthJson = Annotated[
    Path | None,
    typer.Option("--truth-json", help="The panoptic JSON, if it lies elsewhere or is one's own."),
]
Clean = Annotated[
    bool, typer.Option("--clean", help="The clean definition instead of the published scripts'.")
]
PerClass = Annotated[bool, typer.Option("--per-class", help="A row for each class, too.")]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="BOARD",
        help="Print the run among published scores, such as vipseg-val, vspw-val, coco-val.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes; default: the CPUs of this process."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def evaluate() -> None:
    """Score predictions: video panoptic, video semantic, image panoptic.

    Scores are those that the published scripts compute and leaderboards show. Where a script
    differs from its metric's definition and that changed a number, it is named with what the number
    would be; --clean follows the definitions.
    """


@app.command()
def vps(
    truth: Annotated[
        Path, typer.Argument(help="The data set's folder; with --truth-json, the folder of PNGs.")
    ],
    prediction: Prediction,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", min=1, help="One more k for VPQ_k, beside 1, 2, 4 and 6."),
    ] = None,
    truth_json: TruthJson = None,
    manifest: ManifestName = "vipseg",
    split: Split = "val",
    clean: Clean = False,
    per_class: PerClass = False,
    against: Against = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """VPQ and STQ of a VIPSeg submission: pred.json and pan_pred/VIDEO/FRAME.png."""
    from fcache.cli.eval_report import vps_report
    from fcache.data.scored_find import find_submission, find_truth
    from fcache.data.scored_panoptic import vipseg_videos
    from fcache.eval.vpq import LEADERBOARD_WINDOWS
    from fcache.eval.vps import VideoPanopticScores
    from fcache.manifest import load_manifest

    board, layout = _board(against, "vps"), load_manifest(manifest)
    windows = sorted({*LEADERBOARD_WINDOWS, *(k or ())})
    facts = _facts(truth, prediction, split, clean=clean)
    with TemporaryDirectory(prefix=SCRATCH) as scratch:
        found = vipseg_videos(
            find_truth(truth, truth_json, layout, split),
            find_submission(prediction, Path(scratch)),
        )
        categories = found.categories or _categories(layout)
        make = partial(VideoPanopticScores, categories, windows, facts["definition"])
        scores = _score("vps", found.videos, make, workers, facts)
    report = vps_report(scores.result(), categories)
    _print("vps", report, facts, board, per_class=per_class, as_json=as_json)


@app.command()
def vss(
    truth: Annotated[Path, typer.Argument(help="The data set's folder.")],
    prediction: Prediction,
    n: Annotated[
        list[int] | None,
        typer.Option("--n", min=1, help="One more n for VC_n, beside 8 and 16."),
    ] = None,
    manifest: ManifestName = "vspw",
    split: Split = "val",
    clean: Clean = False,
    per_class: PerClass = False,
    against: Against = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """mIoU, weighted IoU and VC_n of a VSPW submission: VIDEO/FRAME.png of category ids."""
    from fcache.cli.eval_report import vss_report
    from fcache.data.scored_find import find_masks
    from fcache.data.scored_semantic import semantic_labels, semantic_videos, video_ids
    from fcache.eval.consistency import LEADERBOARD_CLIPS
    from fcache.eval.vss import VideoSemanticQuality
    from fcache.manifest import load_manifest

    board, layout = _board(against, "vss"), load_manifest(manifest)
    categories, labels = _categories(layout), semantic_labels(layout)
    if not truth.is_dir():
        raise ConfigError(f"the ground truth '{truth}' is not a folder.")
    facts = _facts(truth, prediction, split, clean=clean)
    ids = video_ids(layout, truth, split)
    videos = semantic_videos(layout, truth, find_masks(prediction, ids[0]), split)
    make = partial(
        VideoSemanticQuality,
        categories,
        offset=labels.offset,
        void=labels.void,
        clip_frames=sorted({*LEADERBOARD_CLIPS, *(n or ())}),
        definition=facts["definition"],
    )
    scores = _score("vss", videos, make, workers, facts)
    report = vss_report(scores.result(), categories, len(videos))
    _print("vss", report, facts, board, per_class=per_class, as_json=as_json)


@app.command()
def pq(
    truth: Annotated[
        Path, typer.Argument(help="The data set's folder; with --truth-json, the folder of PNGs.")
    ],
    prediction: Annotated[
        Path, typer.Argument(help="The JSON, the folder with it and its PNGs, or the zip of it.")
    ],
    truth_json: TruthJson = None,
    manifest: ManifestName = "coco_panoptic",
    split: Split = "val",
    clean: Clean = False,
    per_class: PerClass = False,
    against: Against = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """PQ, SQ and RQ of COCO panoptic predictions: a JSON and its folder of PNGs."""
    from fcache.cli.eval_report import pq_report
    from fcache.data.scored_find import find_coco_predictions, find_truth
    from fcache.data.scored_panoptic import coco_images
    from fcache.eval.vps import ImagePanopticScores
    from fcache.manifest import load_manifest

    board, layout = _board(against, "pq"), load_manifest(manifest)
    facts = _facts(truth, prediction, split, clean=clean)
    with TemporaryDirectory(prefix=SCRATCH) as scratch:
        found = coco_images(
            find_truth(truth, truth_json, layout, split),
            find_coco_predictions(prediction, Path(scratch)),
        )
        categories = found.categories or _categories(layout)
        make = partial(ImagePanopticScores, categories, facts["definition"])
        scores = _score("pq", found.videos, make, workers, facts)
    report = pq_report(scores.result(), categories)
    _print("pq", report, facts, board, per_class=per_class, as_json=as_json)


def _board(name: str | None, task: Task) -> Board | None:
    from fcache.manifest import load_board

    return None if name is None else load_board(name, task)


def _categories(manifest: Manifest) -> Sequence[Category]:
    """The categories by ascending id, as the scripts number them."""
    if not manifest.categories:
        raise ConfigError(f"manifest '{manifest.name}' names no categories; expected some.")
    return sorted(manifest.categories, key=lambda category: category.id)


def _facts(truth: Path, prediction: Path, split: str, *, clean: bool) -> dict[str, Any]:
    return {
        "truth": str(truth),
        "prediction": str(prediction),
        "split": split,
        "definition": "clean" if clean else "official",
    }


def _score(
    task: Task,
    videos: Sequence[FramePairs],
    make: Callable[[], S],
    workers: int | None,
    facts: dict[str, Any],
) -> S:
    """Scores the videos; adds to the facts what that took."""
    from fcache.eval.job import score_videos

    count = workers or len(os.sched_getaffinity(0))
    began = time.monotonic()
    lengths = iter([video.num_frames for video in videos])  # they are told of in this order
    with Progress(f"eval {task}", sum(video.num_frames for video in videos)) as progress:
        try:
            scores = score_videos(
                videos,
                make,
                num_workers=count,
                on_video=lambda _: progress.advance(next(lengths)),
            )
        except KeyboardInterrupt:
            raise InterruptedJobError("interrupted; a score needs all frames.") from None
        except BrokenProcessPool:
            raise FcacheError(
                "a worker was killed, most likely by the system, out of memory; fewer --workers "
                "need less."
            ) from None
    facts |= {"workers": count, "seconds": round(time.monotonic() - began, 3)}
    return scores


def _print(
    task: Task,
    report: Report,
    facts: dict[str, Any],
    board: Board | None,
    *,
    per_class: bool,
    as_json: bool,
) -> None:
    from fcache.cli.eval_print import print_json, print_tables

    if as_json:
        print_json(f"eval.{task}", report, facts, board, per_class=per_class)
    else:
        print_tables(report, facts, board, per_class=per_class)
