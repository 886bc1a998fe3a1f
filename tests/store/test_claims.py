"""Claims: one live writer a shard, and none that a dead one keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcache.store import claims as claims_module
from fcache.store.claims import STALE_S, Claims, is_live, sweep_claims
from fcache.store.files import seal, unseal

HOLD = """
import sys
from pathlib import Path
from fcache.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take("64x96", 3), flush=True)
sys.stdin.readline()
"""


def claim_of_another_host(index: Path, age_s: float) -> Path:
    with Claims(index) as claims:
        claims.take("64x96", 3)
        path = next((index / "claims").glob("*.json"))
        record = {**unseal(path), "host": "elsewhere", "writer": "theirs"}
    path.write_bytes(seal(record))
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def test_claim_of_a_live_process_is_refused_and_a_dead_ones_taken_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder, Claims(tmp_path) as claims:
        assert holder.stdout.readline() == "True\n"
        assert not claims.take("64x96", 3)
        assert claims.take("64x96", 4)
        assert claims.take("96x64", 3)
        holder.kill()
        holder.wait()
        assert claims.take("64x96", 3)


def test_two_writers_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take("64x96", 3)
        assert ours.take("64x96", 3)
        assert not theirs.take("64x96", 3)
        theirs.release("64x96", 3)  # not theirs to give up
        assert not theirs.take("64x96", 3)
        ours.release("64x96", 3)
        assert theirs.take("64x96", 3)
        assert not ours.take("64x96", 3)


def test_closing_gives_every_claim_up(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        for shard in range(3):
            claims.take("64x96", shard)
        assert len(list((tmp_path / "claims").iterdir())) == 3
    assert list((tmp_path / "claims").iterdir()) == []


def test_claim_of_another_host_lasts_as_long_as_its_heartbeat(tmp_path: Path) -> None:
    claim_of_another_host(tmp_path, STALE_S / 2)
    with Claims(tmp_path) as claims:
        assert not claims.take("64x96", 3)
        claim = next((tmp_path / "claims").glob("*.json"))
        os.utime(claim, (time.time() - STALE_S - 1, time.time() - STALE_S - 1))
        assert claims.take("64x96", 3)


def test_claim_that_was_taken_over_is_not_given_up_by_the_one_before(tmp_path: Path) -> None:
    with Claims(tmp_path) as slept:
        slept.take("64x96", 3)
        path = claim_of_another_host_in_place(tmp_path)
    assert unseal(path)["writer"] == "theirs"


def claim_of_another_host_in_place(index: Path) -> Path:
    path = next((index / "claims").glob("*.json"))
    path.write_bytes(seal({**unseal(path), "host": "elsewhere", "writer": "theirs"}))
    return path


def test_heartbeat_keeps_a_claim_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "BEAT_S", 0.02)
    with Claims(tmp_path) as claims:
        claims.take("64x96", 3)
        path = next((tmp_path / "claims").glob("*.json"))
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 1000:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.01)


def test_process_id_that_was_used_again_does_not_keep_a_claim(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.take("64x96", 3)
        path = next((tmp_path / "claims").glob("*.json"))
        assert is_live(path, time.time())
        record = unseal(path)
        path.write_bytes(seal({**record, "started": record["started"] - 1}))
        assert not is_live(path, time.time())


def test_process_of_another_container_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.take("64x96", 3)
        path = next((tmp_path / "claims").glob("*.json"))
        path.write_bytes(seal({**unseal(path), "processes": "pid:[1]", "pid": 2**22 + 1}))
        assert is_live(path, time.time())
        assert not is_live(path, time.time() + STALE_S)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"crc32c": 1}'])
def test_damaged_claim_holds_nobody_off(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "64x96.00000003.json").write_bytes(content)
    with Claims(tmp_path) as claims:
        assert claims.take("64x96", 3)


def test_sweep_removes_the_claims_of_the_dead_only(tmp_path: Path) -> None:
    dead = claim_of_another_host(tmp_path, STALE_S + 1)
    with Claims(tmp_path) as claims:
        claims.take("64x96", 4)
        stop = tmp_path / "claims" / "host.1.stop"
        stop.touch()
        assert sweep_claims(tmp_path) == 1
        assert not dead.exists()
        assert len(list((tmp_path / "claims").glob("*.json"))) == 1
        assert stop.exists()
