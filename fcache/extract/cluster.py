"""Where tasks run: this process, a local dask cluster, a given scheduler, or SLURM."""

from __future__ import annotations

import logging
import os
import signal
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from fcache.errors import ConfigError, FcacheError
from fcache.extract.plan import ShardTask
from fcache.extract.worker import TaskResult, WorkerSettings, run_task

TOPIC = "fcache"
CONNECT_S = 20

Report = Callable[[dict[str, Any]], None]


class Executor(Protocol):
    """Runs tasks somewhere."""

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment."""
        ...

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each task's result as it ends; reports commits as they happen.

        Raises:
            FcacheError: what a task raised.
        """
        ...


class InlineExecutor:
    """Runs tasks one after another in this process: for debugging and for tests."""

    @property
    def num_workers(self) -> int:
        """This process."""
        return 1

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each task's result; see ``Executor``."""
        for task in tasks:
            yield run_task(task, settings, report)


class DaskExecutor:
    """Runs tasks on the workers of a dask client."""

    def __init__(self, client: Any, retries: int) -> None:  # noqa: ANN401 - dask has no types
        self._client = client
        self._retries = retries

    @property
    def num_workers(self) -> int:
        """Workers there are at this moment."""
        return max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def run(
        self, tasks: Sequence[ShardTask], settings: WorkerSettings, report: Report
    ) -> Iterator[TaskResult]:
        """Yields each task's result; see ``Executor``."""
        from distributed import as_completed

        self._client.subscribe_topic(TOPIC, lambda event: report(event[1]))
        futures = self._client.map(
            _on_worker,
            tasks,
            settings=settings,
            pure=False,
            retries=self._retries,
            key="fcache-shards",
        )
        try:
            for future in as_completed(futures):
                result = future.result()
                if isinstance(result, FcacheError):
                    raise result
                yield result
        finally:
            self._client.cancel(futures, force=True)
            self._client.unsubscribe_topic(TOPIC)


def _on_worker(task: ShardTask, settings: WorkerSettings) -> TaskResult | FcacheError:
    """Runs a task on a dask worker.

    What the user can mend is handed back as a value: trying again would not mend it.
    """
    from distributed import get_worker

    worker = get_worker()
    try:
        return run_task(task, settings, lambda event: worker.log_event(TOPIC, event))
    except FcacheError as error:
        return error


def open_executor(
    scheduler: str, *, workers: int, device: str, retries: int
) -> AbstractContextManager[Executor]:
    """Opens what ``--scheduler`` names: ``local``, ``inline``, ``tcp://...``, ``slurm:FILE``.

    Raises:
        ConfigError: it names nothing, or cannot be reached.
    """
    if scheduler == "inline":
        return _inline()
    if scheduler == "local":
        return _local(workers, device, retries)
    if scheduler.startswith("slurm:"):
        return _slurm(Path(scheduler.removeprefix("slurm:")), retries)
    if scheduler.startswith(("tcp://", "tls://", "ucx://")):
        return _existing(scheduler, retries)
    raise ConfigError(
        f"--scheduler {scheduler} is none of: local, inline, tcp://HOST:PORT, slurm:FILE."
    )


@contextmanager
def _inline() -> Iterator[Executor]:
    yield InlineExecutor()


@contextmanager
def _local(workers: int, device: str, retries: int) -> Iterator[Executor]:
    """One process per GPU, or ``workers`` on the CPU, on this machine's loopback."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    gpus = _visible_gpus() if device in {"auto", "cuda"} else []
    count = workers or max(1, len(gpus))
    specs = {}
    for number in range(count):
        env = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        options = {"nthreads": 1, "env": env, "memory_limit": 0, "host": "127.0.0.1"}
        specs[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    with (
        _quiet_logs(),
        SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        client.run(_ignore_interrupts)
        yield DaskExecutor(client, retries)


@contextmanager
def _existing(address: str, retries: int) -> Iterator[Executor]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--scheduler {address} does not answer: {error}. Expected a running dask scheduler.",
            run="dask scheduler --host 127.0.0.1",
        ) from None
    with client:
        yield DaskExecutor(client, retries)


@contextmanager
def _slurm(file: Path, retries: int) -> Iterator[Executor]:
    """Workers as SLURM jobs; the file's keys are those of dask-jobqueue's ``SLURMCluster``."""
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError:
        raise ConfigError(
            "--scheduler slurm: needs dask-jobqueue.", run="pip install 'fcache[slurm]'"
        ) from None
    from distributed import Client

    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"'{file}' is no readable TOML file: {error}.") from None
    jobs = table.pop("jobs", None)
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"'{file}' has jobs={jobs}; expected the number of SLURM jobs.")
    try:
        cluster = SLURMCluster(**{"cores": 1, "processes": 1, **table})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'{file}' does not describe a SLURMCluster: {error}.") from None
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=jobs)
        client.wait_for_workers(1)
        yield DaskExecutor(client, retries)


def _visible_gpus() -> list[str]:
    """Names of this machine's GPUs, as CUDA_VISIBLE_DEVICES spells them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]


def _ignore_interrupts() -> None:
    """Leaves Ctrl-C to the process that runs the job: the terminal sends it to every one."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keeps dask's own start-up and shut-down talk off the terminal."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
