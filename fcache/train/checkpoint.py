"""Checkpoints of a run: written whole or not at all, the last and the best one kept.

``checkpoints/step-0002000/{model.safetensors, optimizer.safetensors, state.json}``: a folder is
filled under another name and renamed. Which is last and which best follows from the folders alone.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor, nn

from fcache.errors import ConfigError, NoSpaceError, WeightsError
from fcache.store.files import TMP_SUFFIX, published, write_whole

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
PREFIX = "step-"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        folder: Where.
        step: Steps taken.
        metrics: Scores of its validation; None where it was not validated.
    """

    folder: Path
    step: int
    metrics: Mapping[str, float] | None

    @property
    def model(self) -> Path:
        """The file of the trained module."""
        return self.folder / MODEL


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; it need not exist.
        metric: Which score makes one the best; larger is better.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder = folder
        self.metric = metric

    def saved(self) -> list[Saved]:
        """Returns what is there, by step.

        Raises:
            WeightsError: one is damaged.
        """
        return [_read(found) for found in sorted(self.folder.glob(f"{PREFIX}*"))]

    @property
    def last(self) -> Saved | None:
        """The one of most steps."""
        return max(self.saved(), key=lambda one: one.step, default=None)

    @property
    def best(self) -> Saved | None:
        """The one of the best score; the earliest of equals. None before the first validation."""
        scored = [one for one in self.saved() if self._score(one) > -math.inf]
        return max(scored, key=lambda one: (self._score(one), -one.step), default=None)

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Mapping[str, Any],
    ) -> Saved:
        """Writes a checkpoint and drops those that are neither last nor best.

        Raises:
            NoSpaceError: the disk is full; names the checkpoint that is kept.
        """
        target = self.folder / f"{PREFIX}{step:07d}"
        state = {"format": FORMAT, "step": step, "scaler": dict(scaler), "metrics": None}
        try:
            # A run that was stopped right after saving saves the same step again.
            with published(target) as folder:
                folder.mkdir()
                (folder / MODEL).write_bytes(save_tensors(_plain(module.state_dict())))
                (folder / OPTIMIZER).write_bytes(save_tensors(_plain(optimizer_tensors(optimizer))))
                (folder / STATE).write_bytes(_json(state))
        except NoSpaceError as error:
            kept = self.last
            known = f"'{kept.folder}' of step {kept.step} is kept" if kept else "none was kept yet"
            raise NoSpaceError(
                f"no space left for the checkpoint of step {step} in '{self.folder}'; {known}. "
                "Free space and run the same command again: it resumes."
            ) from error
        saved = Saved(target, step, None)
        self._prune(saved)
        return saved

    def record(self, saved: Saved, metrics: Mapping[str, float]) -> Saved:
        """Adds the scores of a checkpoint's validation."""
        state = json.loads((saved.folder / STATE).read_bytes())
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        write_whole(saved.folder / STATE, _json({**state, "metrics": finite}))
        scored = replace(saved, metrics=finite)
        self._prune(scored)
        return scored

    def load(
        self,
        saved: Saved,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> Mapping[str, Any]:
        """Brings module and optimizer to where they were; returns the scaler's state.

        Raises:
            WeightsError: a file is damaged, or of another model.
        """
        load_model(saved.model, module)
        tensors = read_tensors(saved.folder / OPTIMIZER)
        restore_optimizer(optimizer, tensors, saved.folder / OPTIMIZER)
        scaler: Mapping[str, Any] = json.loads((saved.folder / STATE).read_bytes())["scaler"]
        return scaler

    def sweep(self) -> None:
        """Removes what a killed writer left."""
        for left in self.folder.glob(f".{PREFIX}*{TMP_SUFFIX}"):
            shutil.rmtree(left, ignore_errors=True)

    def _score(self, saved: Saved) -> float:
        return -math.inf if saved.metrics is None else saved.metrics.get(self.metric, -math.inf)

    def _prune(self, newest: Saved) -> None:
        best = self.best
        for old in self.saved():
            if old.step not in {newest.step, best.step if best else None}:
                shutil.rmtree(old.folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's state as tensors, under ``PARAMETER/exp_avg`` and the like."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: Path
) -> None:
    """Gives the optimizer the state that ``optimizer_tensors`` took from one like it.

    Raises:
        WeightsError: a tensor belongs to no parameter.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        states.setdefault(parameter, {})[key] = tensor
    names = [name for group in optimizer.param_groups for name in group["names"]]
    foreign = sorted(states.keys() - set(names))
    if foreign:
        raise WeightsError(
            f"'{where}' holds the state of '{foreign[0]}' and {len(foreign) - 1} more parameters "
            "that are not trained here; expected the checkpoint of the same recipe."
        )
    numbered = {index: states[name] for index, name in enumerate(names) if name in states}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def load_model(path: Path, module: nn.Module, *, without: Container[str] = ()) -> None:
    """Loads every tensor of a module from a file.

    Args:
        path: The file.
        module: What is filled.
        without: Tensors of the file that are passed over.

    Raises:
        WeightsError: the file is damaged, or holds another model; the first differences are named.
    """
    found = {name: each for name, each in read_tensors(path).items() if name not in without}
    expected = module.state_dict()
    problems = [f"lacks '{name}'" for name in expected if name not in found]
    problems += [f"holds '{name}', which has no place here" for name in found.keys() - expected]
    problems += [
        f"has '{name}' as {list(found[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"'{path}' is of another architecture: it {'; it '.join(sorted(problems)[:3])}{more}."
        )
    module.load_state_dict(found)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors in a file.

    Raises:
        ConfigError: there is no such file.
        WeightsError: it is damaged.
    """
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"'{path}' does not exist; expected a file of weights.") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"'{path}' cannot be read: {error}.") from error


def _read(folder: Path) -> Saved:
    try:
        state = json.loads((folder / STATE).read_bytes())
        return Saved(folder, int(state["step"]), state["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"checkpoint '{folder}' is damaged: {STATE} cannot be read ({error}).",
            run=f"rm -r '{folder}'",
        ) from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
