"""Walking JSON piece by piece gives what parsing it whole gives, and says where it breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fcache.data import json_stream
from fcache.data.json_stream import JsonWalk
from fcache.errors import LabelError

TABLE = {
    "info": {"größe": [1, 2.5e3, None, True], "text": 'a "quoted" \\ \u00e9 \u4e2d'},
    "annotations": [
        {"video_id": "é中", "frames": [10, 200, 3000], "more": {}},
        {"video_id": "b", "frames": []},
    ],
    "last": 12345,
}


def walked(path: Path) -> dict[str, object]:
    """The table again, descending into the frames and reading their spans a second time."""
    found: dict[str, object] = {}
    with JsonWalk(path, "the test") as walk, path.open("rb") as file:
        for key in walk.members():
            if key != "annotations":
                value, span = walk.value()
                assert span.read(file) == value
                found[key] = value
                continue
            rows = found["annotations"] = []
            for position in walk.items():
                assert position == len(rows)
                row: dict[str, object] = {}
                for name in walk.members():
                    frames = name == "frames"
                    row[name] = (
                        [walk.value()[1].read(file) for _ in walk.items()]
                        if frames
                        else walk.value()[0]
                    )
                rows.append(row)
    return found


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 18])
@pytest.mark.parametrize(
    "options", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}]
)
def test_a_walk_gives_what_parsing_gives(tmp_path, monkeypatch, chunk_bytes, options):
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TABLE, **options), encoding="utf-8")
    assert walked(path) == TABLE


@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.77, 0.99])
def test_a_file_cut_off_anywhere_is_an_error(tmp_path, part):
    whole = json.dumps(TABLE, ensure_ascii=False).encode()
    path = tmp_path / "a.json"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(LabelError, match=r"a\.json', the test, is not whole JSON .* cut off"):
        walked(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", r"'\[' in place of '\{'"),
        ('{"annotations": {}}', r"'\{' in place of '\['"),
        ('{"annotations" []}', r"'\[' in place of ':'"),
        ('{"info": 1,}', r"',' before '\}'"),
        ('{"info": 1 "last": 2}', r"in place of ',' or '\}'"),
        ("{1: 2}", "1 is no key"),
        ("", "the file ends"),
    ],
)
def test_another_shape_is_named_with_the_place(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(LabelError, match=rf"{words}, \d+ bytes into it"):
        walked(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LabelError, match=r"'.*b\.json', the test, cannot be read: No such file"):
        JsonWalk(tmp_path / "b.json", "the test")
