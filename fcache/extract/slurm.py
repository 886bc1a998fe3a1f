"""Workers as SLURM jobs, through dask-jobqueue."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcache.config import read_toml
from fcache.errors import ConfigError, FcacheError
from fcache.extract.executors import DaskExecutor, Executor, quiet_logs


@contextmanager
def slurm_executor(
    file: Path, retries: int, settings_of_dask: Mapping[str, Any]
) -> Iterator[Executor]:
    """Opens workers as SLURM jobs.

    Args:
        file: TOML: ``jobs``, and the keys of dask-jobqueue's ``SLURMCluster``.
        retries: How often a task is tried again after its worker broke down.
        settings_of_dask: By their dotted names; for the scheduler and for the workers.

    Raises:
        ConfigError: the file does not describe jobs, or they cannot be submitted.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster, SLURMJob
    except ImportError:
        raise ConfigError(
            "--scheduler slurm: needs dask-jobqueue.", run="pip install 'fcache[slurm]'"
        ) from None
    import dask.config
    from distributed import Client, Status

    jobs, settings = _settings(file)
    refusals: list[str] = []

    class Job(SLURMJob):
        """A job whose refusal is told; dask would log it and wait for ever."""

        async def start(self) -> None:
            try:
                await super().start()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                refusals.append(" ".join(str(error).rpartition("stderr:")[2].split()))
                self.status = Status.running  # what the cluster insists on, to close it too

    with quiet_logs(), dask.config.set(settings_of_dask):
        exports = [_exported(name, value) for name, value in settings_of_dask.items()]
        settings["job_script_prologue"] = [*exports, *settings.get("job_script_prologue", [])]
        try:
            cluster = SLURMCluster(**settings, job_cls=Job)  # type: ignore[arg-type]
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"'{file}' does not describe a SLURMCluster: {reason}") from None
        with cluster, Client(cluster) as client:
            cluster.scale(jobs=jobs)
            yield DaskExecutor(client, f"slurm:{file}", retries, lambda: _why_none(refusals))


def _why_none(refusals: Sequence[str]) -> FcacheError | None:
    return ConfigError(f"sbatch refuses the jobs: {refusals[0]}.") if refusals else None


def _exported(name: str, value: object) -> str:
    """The line of a job script that sets a dask setting."""
    variable = name.upper().replace(".", "__").replace("-", "_")
    return f"export DASK_{variable}={shlex.quote(repr(value))}"


def _settings(file: Path) -> tuple[int, dict[str, Any]]:
    """The number of jobs, and what describes one.

    Raises:
        ConfigError: the file does not say it, or this machine cannot submit jobs.
    """
    table = read_toml(file)
    jobs = table.pop("jobs", None)
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"'{file}' has jobs={jobs}; expected the number of SLURM jobs.")
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--scheduler slurm: found no 'sbatch' on PATH; expected a machine that submits jobs."
        )
    # dask would stop giving work to a worker near its limit, and wait; SLURM enforces its own.
    extra = ["--memory-limit", "0", *table.pop("worker_extra_args", [])]
    options = {"dashboard": False, "dashboard_address": ":0", **table.pop("scheduler_options", {})}
    added = {"worker_extra_args": extra, "scheduler_options": options}
    return jobs, {"cores": 1, "processes": 1, **table, **added}
