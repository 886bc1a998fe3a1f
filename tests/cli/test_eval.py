"""``fcache eval``: recorded cases through the command line, submissions, bad input, Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcache.eval import job
from tests.cli.running import message, run, run_json
from tests.eval import vectors
from tests.eval.folders import (
    listed,
    names,
    save_ids,
    save_labels,
    write_case,
    write_predictions,
    write_vipseg,
    write_vspw,
)
from tests.shared import needs_shared

CATEGORIES = [
    {"id": 0, "name": "car", "isthing": 1},
    {"id": 1, "name": "dog", "isthing": 1},
    {"id": 2, "name": "sky", "isthing": 0},
]
MAP = np.array([[1, 1, 70000, 70000], [0, 1, 70000, 9]])
ROWS = [
    {"id": 70000, "category_id": 2, "area": 3, "iscrowd": 0},
    {"id": 1, "category_id": 0, "area": 3, "iscrowd": 0},
    {"id": 9, "category_id": 1, "area": 1, "iscrowd": 0},
]
SUBMISSION = "submission.zip"
TRUTH_JSON = "panoptic_gt_VIPSeg_val.json"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def pack(folder: Path, archive: Path, below: str = "") -> Path:
    """A zip of a folder's content."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, below + path.relative_to(folder).as_posix())
        packed.writestr(f"__MACOSX/{below}._pred.json", "what a Mac adds")
    return archive


@pytest.fixture
def vipseg(tmp_path: Path) -> Path:
    """Three videos in the data set's layout, predicted right."""
    videos = {video: dict.fromkeys(names(7, 3), ROWS) for video in ("1_a", "2_b", "3_c")}
    write_vipseg(tmp_path / TRUTH_JSON, videos)
    edit(tmp_path / TRUTH_JSON, lambda table: table.update(categories=CATEGORIES))
    write_predictions(tmp_path / "prediction", videos)
    for folder in ("panomasksRGB", "prediction/pan_pred"):
        for video, frames in videos.items():
            for frame in frames:
                save_ids(tmp_path / folder / video / f"{frame}.png", MAP)
    return tmp_path


@pytest.fixture
def vspw(tmp_path: Path) -> Path:
    """Two videos of 18 frames, predicted right where there is a label."""
    truth = np.array([[[0, 1, 2, 255], [3, 3, 124, 1]]] * 18, np.uint8)
    prediction = np.where((truth > 0) & (truth < 255), truth - 1, 0).astype(np.uint8)
    write_vspw(tmp_path, dict.fromkeys(("v1", "v2"), (truth, prediction)))
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two images in the data set's layout, predicted right."""
    (tmp_path / "annotations").mkdir()
    for folder in ("panoptic_val2017", "prediction/result"):
        for name in ("a", "b"):
            save_ids(tmp_path / folder / f"{name}.png", MAP)
    table = {"annotations": listed({"a": ROWS, "b": ROWS}), "categories": CATEGORIES}
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(table))
    (tmp_path / "prediction/result.json").write_text(json.dumps(table))
    return tmp_path


def evaluate(task: str, root: Path, *words: Any) -> dict[str, Any]:
    truth = root / "truth" if task == "vss" else root
    return run_json("eval", task, truth, root / "prediction", "--workers", "1", *words)


def close(found: float | None, wanted: float | None) -> bool:
    return found is None if wanted is None else math.isclose(found or 0, wanted, abs_tol=1e-9)


@needs_shared
@pytest.mark.parametrize("case", ["vps_medium", "vps_short", "vps_crowd", *vectors.QUIRKY])
def test_recorded_videos_score_as_the_official_scripts(tmp_path, case):
    facts, arrays = vectors.load(case)
    write_case(tmp_path, facts, arrays)
    words = ("--truth-json", tmp_path / "truth.json", "--k", 8, "--workers", 1)
    found = run_json("eval", "vps", tmp_path / "truth", tmp_path / "prediction", *words)
    scores, expected = found["scores"], facts["expected"]
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        assert close(scores[f"VPQ{suffix}"], expected["vpq"][f"mean_1246_{group}"])
        for k in (1, 2, 4, 6, 8):
            wanted = expected["vpq"][str(k)][group].get("pq")
            assert close(scores[f"VPQ_{k}{suffix}"], wanted if wanted is None else 100 * wanted)
            assert (wanted is None) == (f"VPQ_{k}{suffix}" in found["undefined"])
    assert all(
        close(scores[ours], expected["stq"][theirs])
        for ours, theirs in (("STQ", "STQ"), ("AQ", "AQ"), ("SQ", "IoU"))
    )
    named = {quirk["name"] for quirk in found["quirks"]}
    assert bool(named) == (case in {*vectors.QUIRKY, "vps_crowd", "vps_short", "vps_medium"})


@needs_shared
@pytest.mark.parametrize("case", ["vss_medium", "vss_short", "vss_pred255", "vss_nan_clip"])
def test_recorded_masks_score_as_the_official_scripts(tmp_path, case):
    facts, arrays = vectors.load(case)
    videos = {
        video["video_id"]: (arrays[f"gt_{i}"], arrays[f"pred_{i}"])
        for i, video in enumerate(facts["videos"])
    }
    write_vspw(tmp_path, videos)
    scores, expected = evaluate("vss", tmp_path)["scores"], facts["expected"]
    for ours, theirs in (("mIoU", "mIoU"), ("weighted IoU", "wIoU"), ("VC8", "VC8")):
        assert close(scores[ours], expected[theirs])
    assert close(scores["VC16"], expected["VC16"])


@needs_shared
@pytest.mark.parametrize("case", ["pq_medium", "pq_void_crowd", "pq_things_only"])
def test_recorded_images_score_as_panopticapi(tmp_path, case):
    facts, arrays = vectors.load(case)
    for side, key in (("truth", "gt"), ("prediction", "pred")):
        frames = {}
        for number, image in enumerate(facts["images"]):
            frames[str(number)] = image[f"{key}_segments"]
            save_ids(tmp_path / side / f"{number}.png", arrays[f"{key}_{number}"])
        categories = [{**row, "name": str(row["id"])} for row in facts["categories"]]
        table = {"annotations": listed(frames), "categories": categories}
        (tmp_path / side / f"{side}.json").write_text(json.dumps(table))
    words = ("--truth-json", tmp_path / "truth/truth.json", "--workers", 1)
    found = run_json("eval", "pq", tmp_path / "truth", tmp_path / "prediction", *words)
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        wanted = facts["expected"]["pq"][group]
        for name in ("PQ", "SQ", "RQ"):
            value = wanted.get(name.lower())
            assert close(found["scores"][name + suffix], value if value is None else 100 * value)
            assert (value is None) == (name + suffix in found["undefined"])


def test_ground_truth_as_a_submission_scores_full_marks(vipseg):
    found = evaluate("vps", vipseg)
    scores = found["scores"]
    assert (found["num_videos"], found["num_frames"], found["quirks"]) == (3, 21, [])
    assert scores["VPQ"] == scores["VPQ_6_stuff"] == 100
    assert (scores["stability"], scores["STQ"], scores["AQ"], scores["SQ"]) == (0, 1, 1, 1)


def test_masks_that_are_right_score_one(vspw):
    found = evaluate("vss", vspw, "--n", 2, "--per-class")
    for name in ("mIoU", "weighted IoU", "VC2", "VC16"):
        assert found["scores"][name] == pytest.approx(1)
    assert [(row["id"], row["IoU"], row["true pixels"]) for row in found["classes"]] == [
        (0, 1, 72), (1, 1, 36), (2, 1, 72), (123, 1, 36),
    ]  # fmt: skip


def test_images_that_are_right_score_full_marks_from_json_folder_and_zip(coco):
    prediction = coco / "prediction"
    flat = coco / "flat"
    shutil.copytree(prediction / "result", flat)
    shutil.copy(prediction / "result.json", flat)
    for given in (
        prediction,
        prediction / "result.json",
        flat,
        pack(prediction, coco / SUBMISSION),
    ):
        found = run_json("eval", "pq", coco, given, "--workers", 1)
        assert (found["scores"]["PQ"], found["scores"]["RQ_things"], found["num_images"]) == (
            100, 100, 2,
        )  # fmt: skip


@pytest.mark.parametrize("below", ["", "my_team/"])
def test_a_zip_is_read_where_it_is_by_any_number_of_workers(vipseg, below, monkeypatch):
    monkeypatch.setattr(job, "FRAMES_PER_TASK", 7)  # so that there is work for two processes
    archive = pack(vipseg / "prediction", vipseg / SUBMISSION, below)
    edit(vipseg / "prediction/pred.json", lambda table: table["annotations"].pop())
    found = [run_json("eval", "vps", vipseg, archive, "--workers", count) for count in (1, 2)]
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["scores"]["VPQ"] == 100


@pytest.mark.parametrize("below", ["", "my_team/"])
def test_a_zip_of_masks_scores_as_its_folder(vspw, below):
    archive = pack(vspw / "prediction", vspw / SUBMISSION, below)
    found = run_json("eval", "vss", vspw / "truth", archive, "--workers", 1)
    assert found["scores"] == evaluate("vss", vspw)["scores"]


def test_masks_of_a_layout_with_a_folder_for_each_split(tmp_path):
    labels = np.array([[0, 1, 10, 11]], np.uint8)
    for name in names(3):
        save_labels(tmp_path / f"val/drive/semantic/{name}.png", labels)
        save_labels(tmp_path / f"prediction/val/drive/{name}.png", labels)
    (tmp_path / "val/drive/images").mkdir()
    words = ("--manifest", "camvid", "--n", 2, "--workers", 1)
    found = run_json("eval", "vss", tmp_path, tmp_path / "prediction", *words)
    assert (found["scores"]["mIoU"], found["scores"]["VC2"], found["num_frames"]) == (1, 1, 3)
    assert "VC8" in found["undefined"]
    assert found["scores"]["VC8"] is None


def test_quirks_are_named_and_gone_when_clean(vipseg):
    path = vipseg / TRUTH_JSON
    edit(path, lambda t: t["annotations"][1]["annotations"][0]["segments_info"][1].update(area=90))
    found, clean = evaluate("vps", vipseg), evaluate("vps", vipseg, "--clean")
    assert {(quirk["metric"], quirk["name"]) for quirk in found["quirks"]} >= {
        ("VPQ_1", "gt_area_from_json")
    }
    (quirk,) = [quirk for quirk in found["quirks"] if quirk["metric"] == "VPQ_1"]
    assert quirk["value"] == found["scores"]["VPQ_1"] < quirk["without"] == 100
    assert quirk["first"] == "video '2_b' frame '00003'"
    assert (clean["scores"]["VPQ"], clean["quirks"], clean["definition"]) == (100, [], "clean")
    code, out, _ = run("eval", "vps", vipseg, vipseg / "prediction", "--workers", "1")
    assert code == 0
    assert f"VPQ_1 {quirk['value']:.6f}, without this 100.000000: areas of true segments" in out


def test_what_is_undefined_is_null_with_its_reason(vipseg):
    edit(
        vipseg / TRUTH_JSON,
        lambda table: (
            [video["annotations"].pop() for video in table["annotations"]]
            and [video["images"].pop() for video in table["videos"]]
        ),
    )
    edit(
        vipseg / "prediction/pred.json",
        lambda table: [video["annotations"].pop() for video in table["annotations"]],
    )
    found = evaluate("vps", vipseg, "--k", 7)
    assert found["scores"]["VPQ_7"] is None
    assert "ZeroDivisionError" in found["undefined"]["VPQ_7"]
    assert [quirk["name"] for quirk in found["quirks"]] == ["no_windows"]
    assert found["scores"]["VPQ"] == 100
    assert evaluate("vps", vipseg, "--k", 7, "--clean")["scores"]["VPQ_7"] == 100


def test_tables_show_groups_classes_and_the_run_among_published_rows(vipseg):
    words = ("--per-class", "--against", "pvuw24-vps-test", "--workers", "1")
    code, out, err = run("eval", "vps", vipseg, vipseg / "prediction", *words)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["ALL", "THINGS", "STUFF"]
    assert lines[1].split() == ["VPQ", "100.0000", "100.0000", "100.0000"]
    assert "VPQ_1 - VPQ_6  0.0000" in lines
    assert any(line.split()[:3] == ["1", "dog", "thing"] for line in lines)
    board = lines.index("pvuw24-vps-test: VIPSeg, test split, PVUW 2024 final phase")
    assert lines[board + 2].startswith("> this run, official definition")
    assert "58.26  0.543" in lines[board + 3]
    assert lines[-1].startswith("3 videos, 21 frames, ")
    assert json.loads(err.splitlines()[-1])["done"] == 21


def test_a_run_stands_where_its_score_puts_it(vspw):
    found = evaluate("vss", vspw, "--against", "vspw-val")["against"]
    assert [row["ours"] for row in found["rows"]] == [True] + [False] * (len(found["rows"]) - 1)
    for path in (vspw / "prediction").rglob("*.png"):
        save_labels(path, np.full((2, 4), 50, np.uint8))
    found = evaluate("vss", vspw, "--against", "vspw-val")["against"]
    assert found["rows"][-1]["scores"] == {"mIoU": 0, "VC8": 1, "VC16": 1}


def without_isthing(root: Path) -> None:
    rows = [{"id": 0, "name": "car"}]
    edit(root / TRUTH_JSON, lambda table: table.update(categories=rows))


def cut(root: Path) -> None:
    path = root / "prediction/pred.json"
    path.write_bytes(path.read_bytes()[:300])


def palette(root: Path) -> None:
    from PIL import Image

    image = Image.fromarray(MAP.astype(np.uint8)).convert("P")
    image.save(root / "prediction/pan_pred/2_b/00004.png")


FRAME = "video '2_b' frame '00004'"


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda root: shutil.rmtree(root / "prediction"), 2, "' does not exist."),
        (lambda root: shutil.rmtree(root / "panomasksRGB"), 1, "video '1_a' frame '00003'"),
        (
            lambda root: (root / TRUTH_JSON).unlink(),
            2,
            "does not hold 'panoptic_gt_VIPSeg_val.json', the panoptic JSON of split 'val'",
        ),
        (lambda root: (root / "prediction/pred.json").unlink(), 1, "pred.json', the prediction"),
        (cut, 1, "it may have been cut off"),
        (without_isthing, 1, "does not say of category 0 whether it isthing"),
        (
            lambda root: edit(root / "prediction/pred.json", lambda t: t["annotations"].pop(1)),
            1,
            "video '2_b' has no annotations in",
        ),
        (
            lambda root: (root / "prediction/pan_pred/2_b/00004.png").unlink(),
            1,
            f"{FRAME}: label",
        ),
        (palette, 1, f"{FRAME}: label"),
        (
            lambda root: save_ids(root / "prediction/pan_pred/2_b/00004.png", MAP[:1]),
            1,
            f"{FRAME}: the prediction is 1x4 and the ground truth 2x4",
        ),
        (
            lambda root: save_ids(root / "prediction/pan_pred/2_b/00004.png", MAP + 1),
            1,
            f"{FRAME}: the prediction's map holds segment id",
        ),
    ],
)
def test_what_is_wrong_with_videos_is_said_with_its_exit_code(vipseg, damage, code, words):
    damage(vipseg)
    found, out, err = run("eval", "vps", vipseg, vipseg / "prediction", "--workers", 2)
    assert (found, out) == (code, "")
    assert words in message(err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--split", "vall"), "'panoptic_gt_VIPSeg_vall.json'"),
        (("--manifest", "vipsig"), "nearest: vipseg"),
        (("--manifest", "camvid"), "name the JSON with --truth-json FILE"),
        (("--against", "vipseg-vla"), "nearest: vipseg-val"),
        (("--against", "coco-val"), "board 'coco-val' is of task pq"),
        (("--k", "0"), "Invalid value for '--k'"),
        (("--workers", "0"), "Invalid value for '--workers'"),
    ],
)
def test_wrong_words_are_usage_errors(vipseg, words, said):
    code, _, err = run("eval", "vps", vipseg, vipseg / "prediction", *words)
    assert code == 2
    assert said in message(err)


def test_a_zip_of_another_kind_is_refused(vipseg):
    archive = vipseg / SUBMISSION
    archive.write_bytes(b"no zip")
    code, _, err = run("eval", "vps", vipseg, archive)
    assert code == 1
    assert "is not a whole zip" in message(err)
    pack(vipseg / "prediction/pan_pred", archive)
    assert "holds no pred.json" in message(run("eval", "vps", vipseg, archive)[2])


def test_two_jsons_of_predictions_are_refused(coco):
    (coco / "prediction/more.json").write_text("{}")
    code, _, err = run("eval", "pq", coco, coco / "prediction")
    assert code == 2
    assert "holds 2 (more.json, result.json)" in message(err)


def test_a_frame_that_lacks_in_a_zip_is_named(vspw):
    (vspw / "prediction/v2/00009.png").unlink()
    archive = pack(vspw / "prediction", vspw / SUBMISSION)
    code, _, err = run("eval", "vss", vspw / "truth", archive, "--workers", 1)
    assert code == 1
    assert "video 'v2' frame '00009': label" in message(err)
    assert "No such file in the zip" in err


def test_a_damaged_file_in_a_zip_names_its_frame(vspw):
    archive = pack(vspw / "prediction", vspw / SUBMISSION)
    with zipfile.ZipFile(archive) as packed:
        at = packed.getinfo("v2/00007.png").header_offset + 60
    content = bytearray(archive.read_bytes())
    content[at] ^= 0xFF
    archive.write_bytes(content)
    code, _, err = run("eval", "vss", vspw / "truth", archive, "--workers", 1)
    assert code == 1
    assert "video 'v2' frame '00007': label" in message(err)


def children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def long_run(tmp_path: Path):
    """``fcache eval vss`` at work on noise that takes long to decode, with two workers."""
    noise = np.random.default_rng(0).integers(0, 120, (900, 900), np.uint8)
    save_labels(tmp_path / "noise.png", noise)
    for video in ("v1", "v2", "v3"):
        for folder in (f"truth/data/{video}/mask", f"prediction/{video}"):
            (tmp_path / folder).mkdir(parents=True)
            for name in names(1000):
                (tmp_path / folder / f"{name}.png").symlink_to(tmp_path / "noise.png")
    (tmp_path / "truth/val.txt").write_text("v1\nv2\nv3")
    words = ["eval", "vss", tmp_path / "truth", tmp_path / "prediction", "--workers", "2"]
    job = subprocess.Popen(
        [sys.executable, "-m", "fcache", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(children(job.pid)) < 3 and time.monotonic() < deadline:  # two, and their tracker
        time.sleep(0.05)
    assert len(children(job.pid)) == 3
    yield job
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


@pytest.mark.parametrize("wait_s", [0.0, 2.0])
def test_ctrl_c_ends_it_at_once_with_its_workers(long_run, wait_s):
    time.sleep(wait_s)  # while workers start; while they work
    workers = children(long_run.pid)
    os.killpg(long_run.pid, signal.SIGINT)
    _, err = long_run.communicate(timeout=30)
    assert long_run.returncode == 130
    assert "interrupted" in message(err)
    assert gone(workers)


def test_workers_do_not_outlive_a_killed_command(long_run):
    time.sleep(2)
    workers = children(long_run.pid)
    long_run.kill()
    long_run.communicate(timeout=30)
    assert gone(workers)
