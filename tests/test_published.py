"""Published scores: what the file holds, and that ``fcache eval`` prints the same names."""

from __future__ import annotations

import pytest

from fcache.cli.eval_report import Report, pq_report, ranked, vps_report, vss_report
from fcache.errors import ConfigError
from fcache.eval.vps import ImagePanopticScores, VideoPanopticScores
from fcache.eval.vss import VideoSemanticQuality
from fcache.manifest import Board, load_board, load_boards, manifest_names
from tests.eval.made import CATEGORIES

BOARDS = load_boards().values()


def report(task: str) -> Report:
    """What eval prints of nothing."""
    if task == "vps":
        return vps_report(VideoPanopticScores(CATEGORIES).result(), CATEGORIES)
    if task == "vss":
        return vss_report(VideoSemanticQuality(CATEGORIES).result(), CATEGORIES, 0)
    return pq_report(ImagePanopticScores(CATEGORIES).result(), CATEGORIES)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_rows_hold_scores_that_eval_prints_in_its_scale(board: Board) -> None:
    printed = report(board.task).scores
    assert board.rows
    assert len({row.method for row in board.rows}) == len(board.rows)
    for row in board.rows:
        assert row.source
        assert row.scores
        assert row.scores.keys() <= printed.keys()
        for name, value in row.scores.items():
            assert (1 < value < 100) if name.startswith(("VPQ", "PQ")) else (0 < value < 1)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_rows_stand_best_first_and_an_undefined_run_last(board: Board) -> None:
    metrics, rows = ranked(board, report(board.task).scores, "official")
    assert [row["method"] for row in rows[:-1]] == [row.method for row in board.rows]
    assert rows[-1]["ours"]
    assert rows[-1]["scores"].keys() == set(metrics)


def test_names_are_unique_and_no_board_is_a_manifest() -> None:
    assert len(load_boards()) == len(BOARDS)
    assert not {"published", *load_boards()} & set(manifest_names())


def test_a_board_of_another_task_is_refused() -> None:
    assert load_board("coco-val", "pq").task == "pq"
    with pytest.raises(ConfigError, match="board 'coco-val' is of task pq"):
        load_board("coco-val", "vps")
