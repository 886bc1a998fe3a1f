"""How long a job has still to go, judged by the pieces its workers have finished."""

from __future__ import annotations

RECENCY = 1.0  # weight of an interval: (its time / the time gone by) to this power


class Eta:
    """Estimates the time left. It has no clock: times are given, in seconds from any origin.

    Work comes in pieces, several workers are at it, and pieces differ in cost. So each worker's
    time between two of its pieces is held against the later one's cost, over the whole job with
    more weight on what is recent; and what workers have begun counts by how long ago that was.

    Args:
        total: Cost of all work, in any unit in which a worker's speed is the same for all of it.
        now_s: When the work begins.
    """

    def __init__(self, total: float, now_s: float) -> None:
        self.total = total
        self._began_s = self._last_s = now_s
        self._done = 0.0
        self._num_workers = 1
        self._heard_s: dict[str, float] = {}
        # Sums over pieces, weighted: seconds and costs of those after a worker's first...
        self._seconds = self._cost = self._pieces = 0.0
        # ...and of the firsts, whose time includes getting ready.
        self._first_seconds = self._first_cost = 0.0

    def add(self, now_s: float, cost: float, worker: str = "", num_workers: int = 1) -> None:
        """Tells of a finished piece.

        Args:
            worker: Who finished it.
            num_workers: How many there are.
        """
        gone_s = max(now_s - self._began_s, 1e-9)
        fade = (max(self._last_s - self._began_s, 0.0) / gone_s) ** RECENCY
        self._seconds *= fade
        self._cost *= fade
        self._pieces *= fade
        if worker in self._heard_s:
            self._seconds += now_s - self._heard_s[worker]
            self._cost += cost
            self._pieces += 1
        else:
            self._first_seconds += gone_s
            self._first_cost += cost
        self._heard_s[worker] = self._last_s = now_s
        self._num_workers = num_workers
        self._done += cost

    def left_s(self, now_s: float) -> float | None:
        """Returns the seconds left; None before anything is known."""
        if self._done >= self.total:
            return 0.0
        s_per_cost = self._s_per_cost()
        if s_per_cost is None:
            return None
        left = self.total - self._done - self._begun(now_s, s_per_cost)
        return max(0.0, left) * s_per_cost / self._num_workers

    def _s_per_cost(self) -> float | None:
        """Seconds a worker takes for a unit of cost."""
        if self._cost and self._seconds:
            return self._seconds / self._cost
        return self._first_seconds / self._first_cost if self._first_cost else None

    def _begun(self, now_s: float, s_per_cost: float) -> float:
        """Cost of what workers have done of pieces not finished."""
        usual = self._cost / self._pieces if self._pieces else self._first_cost / len(self._heard_s)
        latest = sorted(self._heard_s.values(), reverse=True)[: self._num_workers]
        unheard = [self._began_s] * (self._num_workers - len(latest))
        return sum(min(usual, (now_s - since) / s_per_cost) for since in (*latest, *unheard))
