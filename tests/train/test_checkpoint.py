from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from fcache.errors import ConfigError, NoSpaceError, WeightsError
from fcache.train.checkpoint import Checkpoints, load_model, optimizer_tensors
from fcache.train.optimizer import make_optimizer, parameter_groups
from tests.extract.making import tree


def model(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(parameter_groups(module, lr=0.1, weight_decay=0.5))


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(inputs).square().sum().backward()
        optimizer.step()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def steps(checkpoints: Checkpoints) -> list[int]:
    return [saved.step for saved in checkpoints.saved()]


def test_what_is_loaded_goes_on_bit_for_bit(tmp_path: Path) -> None:
    unbroken = model()
    optimizer = optimizer_of(unbroken)
    take_steps(unbroken, optimizer, range(3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", "pq")
    checkpoints.save(3, unbroken, optimizer, {"scale": 2.0})
    take_steps(unbroken, optimizer, range(3, 6))

    resumed = model()
    again = optimizer_of(resumed)
    last = checkpoints.last
    assert last is not None
    assert checkpoints.load(last, resumed, again) == {"scale": 2.0}
    take_steps(resumed, again, range(3, 6))
    assert same(unbroken.state_dict(), resumed.state_dict())
    assert same(optimizer_tensors(optimizer), optimizer_tensors(again))


def test_last_and_best_are_kept_and_others_go(tmp_path: Path) -> None:
    module = model()
    optimizer = optimizer_of(module)
    checkpoints = Checkpoints(tmp_path, "pq")
    assert checkpoints.last is None
    assert checkpoints.best is None
    for step, pq in ((1, 0.2), (2, 0.5), (3, 0.4)):
        checkpoints.record(checkpoints.save(step, module, optimizer, {}), {"pq": pq, "miou": 0.1})
    checkpoints.save(4, module, optimizer, {})
    assert steps(checkpoints) == [2, 4]
    assert checkpoints.best is not None
    assert (checkpoints.best.step, checkpoints.best.metrics) == (2, {"pq": 0.5, "miou": 0.1})
    checkpoints.record(checkpoints.save(5, module, optimizer, {}), {"pq": 0.5})
    assert steps(checkpoints) == [2, 5]  # the earliest of equals
    checkpoints.record(checkpoints.save(6, module, optimizer, {}), {"pq": 0.6})
    assert steps(checkpoints) == [6]


def test_score_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    module = model()
    checkpoints = Checkpoints(tmp_path, "pq")
    saved = checkpoints.save(1, module, optimizer_of(module), {})
    assert checkpoints.record(saved, {"pq": float("nan"), "miou": 0.3}).metrics == {"miou": 0.3}
    assert checkpoints.best is None
    assert checkpoints.last is not None


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    module = model()
    optimizer = optimizer_of(module)
    checkpoints = Checkpoints(tmp_path, "pq")
    checkpoints.save(1, module, optimizer, {})
    take_steps(module, optimizer, range(1))
    saved = checkpoints.save(1, module, optimizer, {})
    fresh = model()
    load_model(saved.model, fresh)
    assert same(fresh.state_dict(), module.state_dict())


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    module = model()
    optimizer = optimizer_of(module)
    checkpoints = Checkpoints(tmp_path, "pq")
    checkpoints.save(7, module, optimizer, {})
    before = tree(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # bytes: less than the weights
    try:
        with pytest.raises(NoSpaceError) as caught:
            checkpoints.save(8, module, optimizer, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no space left for the checkpoint of step 8" in caught.value.message
    assert "step-0000007' of step 7 is kept" in caught.value.message
    assert tree(tmp_path) == before


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    module = model()
    checkpoints = Checkpoints(tmp_path, "pq")
    checkpoints.save(1, module, optimizer_of(module), {})
    left = tmp_path / ".step-0000002.abcdef.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert steps(checkpoints) == [1]
    checkpoints.sweep()
    assert not left.exists()
    assert steps(checkpoints) == [1]


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    module = model()
    saved = Checkpoints(tmp_path, "pq").save(1, module, optimizer_of(module), {})
    with pytest.raises(WeightsError, match=r"another architecture: it has '0\.bias' as \[4\]") as e:
        load_model(saved.model, model(width=5))
    assert "and 4 more" in e.value.message
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(WeightsError, match=r"it holds '2\.bias', which has no place here"):
        load_model(saved.model, other)
    with pytest.raises(WeightsError, match=r"it lacks '3\.bias'"):
        load_model(saved.model, nn.Sequential(*model(), nn.Linear(2, 2)))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    module = model()
    checkpoints = Checkpoints(tmp_path, "pq")
    saved = checkpoints.save(1, module, optimizer_of(module), {})
    saved.model.write_bytes(saved.model.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.safetensors' cannot be read"):
        load_model(saved.model, module)
    saved.model.unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors' does not exist"):
        load_model(saved.model, module)
    (saved.folder / "state.json").write_text("{")
    with pytest.raises(WeightsError, match=r"state\.json cannot be read") as caught:
        _ = checkpoints.last
    assert caught.value.run == f"rm -r '{saved.folder}'"


def test_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    module = model()
    optimizer = optimizer_of(module)
    take_steps(module, optimizer, range(1))
    checkpoints = Checkpoints(tmp_path, "pq")
    saved = checkpoints.save(1, module, optimizer, {})
    module[0].requires_grad_(False)
    with pytest.raises(WeightsError, match=r"state of '0\.bias' and 1 more parameters"):
        checkpoints.load(saved, module, optimizer_of(module))


def test_state_is_readable_json(tmp_path: Path) -> None:
    module = model()
    saved = Checkpoints(tmp_path, "pq").save(12, module, optimizer_of(module), {"scale": 4.0})
    state = json.loads((saved.folder / "state.json").read_text())
    assert state == {"format": 1, "step": 12, "scaler": {"scale": 4.0}, "metrics": None}
