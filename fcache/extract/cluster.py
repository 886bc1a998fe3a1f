"""Where tasks run: this process, a local dask cluster, a given scheduler, or SLURM."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from fcache.config import read_toml
from fcache.errors import ConfigError, FcacheError
from fcache.extract.executors import DaskExecutor, Executor, InlineExecutor, quiet_logs
from fcache.extract.slurm import slurm_executor
from fcache.interrupt import without_interrupts

# dask's workers hand memory back to the system at once. A network allocates the same again for the
# next batch, and the page faults cost a third of its time on a CPU (docs/results).
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 1 << 32, "MALLOC_MMAP_THRESHOLD_": 1 << 30}
# dask watches itself: every 20 ms for a blocked loop, every 10 ms for what its tasks do, and so on.
# Together that costs scheduler and workers 2 to 3 % of a core each (docs/results).
QUIET = {
    "distributed.nanny.pre-spawn-environ": KEEP_MEMORY,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.active-memory-manager.start": False,
    # A worker that is not back by then is given up for good; to start one can take minutes.
    "distributed.deploy.lost-worker-timeout": "1000 days",
}
CONNECT_S = 15
SLURM = "slurm:"
ADDRESSES = ("tcp://", "tls://", "ucx://")


def open_executor(
    scheduler: str, *, workers: int, device: str, retries: int
) -> AbstractContextManager[Executor]:
    """Opens what ``--scheduler`` names: ``local``, ``inline``, ``tcp://...``, ``slurm:FILE``.

    Raises:
        ConfigError: it names nothing, or cannot be reached.
    """
    check_scheduler(scheduler)
    if scheduler == "inline":
        return _inline()
    if scheduler == "local":
        return _local(workers, device, retries)
    if scheduler.startswith(SLURM):
        return slurm_executor(Path(scheduler.removeprefix(SLURM)), retries, QUIET)
    return _existing(scheduler, retries)


def check_scheduler(scheduler: str) -> None:
    """Refuses a name of no scheduler; whether one answers shows when it is opened.

    Raises:
        ConfigError: it names nothing.
    """
    if scheduler.startswith(SLURM):
        read_toml(Path(scheduler.removeprefix(SLURM)))
    elif scheduler not in {"inline", "local"} and not scheduler.startswith(ADDRESSES):
        raise ConfigError(
            f"--scheduler {scheduler} is none of: local, inline, tcp://HOST:PORT, slurm:FILE."
        )


def planned_workers(scheduler: str, *, workers: int, device: str) -> int | None:
    """Returns how many workers there will be; None where that is known only to the scheduler."""
    if scheduler == "inline":
        return 1
    if scheduler != "local":
        return None
    return workers or max(1, len(_visible_gpus() if device in {"auto", "cuda"} else []))


@contextmanager
def _inline() -> Iterator[Executor]:
    yield InlineExecutor()


@contextmanager
def _local(workers: int, device: str, retries: int) -> Iterator[Executor]:
    """One process per GPU, or ``workers`` on the CPU, on this machine's loopback."""
    import dask.config
    from distributed import Client, Nanny, Scheduler, SpecCluster

    gpus = _visible_gpus() if device in {"auto", "cuda"} else []
    count = workers or max(1, len(gpus))
    # dask gives each worker one thread unless told otherwise; here the cores are all ours.
    share = max(1, len(os.sched_getaffinity(0)) // count)
    threads = os.environ.get("OMP_NUM_THREADS") or str(share)
    specs = {}
    for number in range(count):
        env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        specs[number] = {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "env": env,
                "memory_limit": 0,
                "host": "127.0.0.1",
                "silence_logs": logging.CRITICAL,
            },
        }
    served = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": served}
    with quiet_logs(), dask.config.set(QUIET):
        try:
            with without_interrupts():
                cluster = SpecCluster(
                    workers=specs, scheduler=scheduler, silence_logs=logging.CRITICAL
                )
        except RuntimeError as error:
            raise FcacheError(
                f"a worker does not start: {_first_cause(error)}; --scheduler inline shows more."
            ) from None
        with cluster, Client(cluster) as client:
            yield DaskExecutor(client, "local", retries, lambda: _why_none(cluster))


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _why_none(cluster: Any) -> FcacheError | None:  # noqa: ANN401 - dask has no types
    """Says that no worker will come back, if so."""
    from distributed import Status

    ended = {Status.closing, Status.closed, Status.failed}
    if any(nanny.status not in ended for nanny in cluster.workers.values()):
        return None
    return FcacheError(
        "the workers died and do not start again. Every committed shard is kept. "
        "--scheduler inline shows more."
    )


@contextmanager
def _existing(address: str, retries: int) -> Iterator[Executor]:
    from distributed import Client

    with quiet_logs():
        try:
            client = Client(address, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"--scheduler {address} does not answer: {reason}; expected a running dask "
                "scheduler.",
                run="dask scheduler --host 127.0.0.1",
            ) from None
        with client:
            yield DaskExecutor(client, address, retries)


def _visible_gpus() -> list[str]:
    """Names of this machine's GPUs, as CUDA_VISIBLE_DEVICES spells them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
