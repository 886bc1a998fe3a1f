"""The least time the fused op could take: what of memory, cache and issue slots it cannot avoid."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.deform_attn_rivals import Shape


@dataclass(frozen=True)
class Floor:
    """The least milliseconds a pass can take, by what limits it."""

    limits_ms: dict[str, float]

    @property
    def ms(self) -> float:
        return max(self.limits_ms.values())

    def __str__(self) -> str:
        name = max(self.limits_ms, key=self.limits_ms.__getitem__)
        return f"{self.ms:.3f} ms ({name})"


def bytes_moved(shape: Shape, batch: int, size: int) -> tuple[int, int, int]:
    """Bytes that forward and backward must move at least once, and what the gather reads."""
    value = batch * shape.cells * shape.heads * shape.head_dim * size
    points, scores = 2 * batch * shape.samples * size, batch * shape.samples * size
    out = batch * shape.queries * shape.heads * shape.head_dim * size
    gather = 4 * batch * shape.samples * shape.head_dim * size
    return value + points + scores + out, 2 * (value + points + scores) + out, gather


def gpu_floors(
    shape: Shape, batch: int, size: int, memory_gb_s: float, clock_ghz: float, processors: int
) -> tuple[Floor, Floor]:
    """Floors of forward and of forward and backward together.

    128 bytes and four warp instructions a clock and processor. An instruction a channel and corner
    for the sum, another for unpacking half precision, and 27 a sample for shuffles, tests,
    addresses, loads and zeros, in groups of lanes with 16 bytes each. The backward reads value and
    the output's gradient once a corner: twice the forward's gather.
    """
    forward, backward, gather = bytes_moved(shape, batch, size)
    vector = 16 // size
    per_lane = 4 * vector * (2 if size == 2 else 1) + 27
    warps = batch * shape.samples * shape.head_dim / vector / 32
    rate = processors * clock_ghz * 1e6  # clocks of all processors in a millisecond
    memory = memory_gb_s * 1e6
    once = {
        "memory": forward / memory,
        "L1": gather / 128 / rate,
        "issue": warps * per_lane / 4 / rate,
    }
    more = {"memory": backward / memory, "L1": 2 * once["L1"], "issue": 2 * once["issue"]}
    return Floor(once), Floor({name: once[name] + more[name] for name in once})


def cpu_floors(
    shape: Shape, batch: int, size: int, read_gb_s: float, copy_gb_s: float
) -> tuple[Floor, Floor]:
    """Floors of one core: the gather out of L2, in float32 whatever is stored.

    The backward reads it once more and adds to as many bytes.
    """
    gather = bytes_moved(shape, batch, 4)[2]
    forward = gather / read_gb_s / 1e6
    return Floor({"L2": forward}), Floor({"L2": 2 * forward + 2 * gather / copy_gb_s / 1e6})
