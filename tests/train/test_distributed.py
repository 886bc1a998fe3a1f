from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fcache.errors import ConfigError
from fcache.train.distributed import World, joined, pick_device
from tests.train.making import train
from tests.train.ranks import WHOLE_RUN, make_norm, norm_inputs, norm_weights, run_nan, run_step

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(out: Path, scene_cache: Path) -> list[dict[str, Any]]:
    """What two processes found that talk through gloo; see ``tests.train.ranks``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.ranks", str(out), str(scene_cache)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_synced_norm_equals_one_norm_over_all_positions(ranks) -> None:
    plain = make_norm()
    inputs = [maps.requires_grad_() for maps in norm_inputs()]
    # Positions of both ranks side by side: [1, C, positions, 1].
    flat = torch.cat([maps.transpose(0, 1).flatten(1) for maps in inputs], 1)[None, :, :, None]
    out = plain(flat)
    weights = torch.cat([w.transpose(0, 1).flatten(1) for w in norm_weights()], 1)
    (out[0, :, :, 0] * weights).sum().backward()
    parts = out[0, :, :, 0].split([maps[:, 0].numel() for maps in inputs], 1)
    for rank, part, maps in zip(ranks, parts, inputs, strict=True):
        found = rank["norm"]
        mine = found["out"].transpose(0, 1).flatten(1)
        torch.testing.assert_close(mine, part.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["by_input"], maps.grad, rtol=1e-4, atol=1e-4)
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(found["buffers"][name], buffer, **CLOSE)
    for name, parameter in (("by_weight", plain.weight), ("by_bias", plain.bias)):
        total = ranks[0]["norm"][name] + ranks[1]["norm"][name]
        torch.testing.assert_close(total, parameter.grad, rtol=1e-4, atol=1e-4)


def test_alone_it_is_the_plain_norm_bit_for_bit() -> None:
    norm, plain = make_norm(), nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(norm_inputs()[0]), plain(norm_inputs()[0]))
    norm.eval()
    plain.eval()
    assert torch.equal(norm(norm_inputs()[1]), plain(norm_inputs()[1]))


def test_gradients_of_two_ranks_equal_those_of_one(ranks) -> None:
    alone = run_step(World())
    for rank in ranks:
        found = rank["step"]
        assert found["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, **CLOSE, msg=name)
        assert found["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def test_parameters_after_one_sgd_step_of_two_ranks_equal_those_of_one(ranks) -> None:
    alone = run_step(World())
    moved = 0
    for name, tensor in alone["state"].items():
        for rank in ranks:
            torch.testing.assert_close(rank["step"]["state"][name], tensor, **CLOSE, msg=name)
        assert torch.equal(*(rank["step"]["state"][name] for rank in ranks)), name
        moved += int(
            tensor.is_floating_point() and bool(alone["gradients"].get(name, tensor).any())
        )
    assert moved > 50


def test_one_rank_that_is_asked_to_stop_stops_all(ranks) -> None:
    assert [rank["step"]["stopped"] for rank in ranks] == [True, True]
    assert run_step(World())["stopped"]


def test_loss_that_is_not_a_number_stops_all_ranks_and_names_the_clip(ranks) -> None:
    messages = {rank["nan"]["message"] for rank in ranks}
    assert len(messages) == 1
    (message,) = messages
    assert message.startswith("step 5: the loss is nan, from clip 1, whose stage outputs are not")
    assert all(rank["nan"]["kept"] for rank in ranks)
    assert run_nan(World())["message"] == message


def test_two_ranks_train_as_one_process_does_and_rank_0_writes(
    ranks, out: Path, scene_cache: Path, tmp_path: Path
) -> None:
    found = [rank["run"] for rank in ranks]
    alone = train(scene_cache, tmp_path / "alone", **WHOLE_RUN, micro_batch=2)
    assert found[1]["events"] == []
    assert [e["step"] for e in found[0]["events"] if e["event"] == "step"] == [1, 2]
    assert found[0]["result"] == found[1]["result"]
    together = load_file(out / "run" / "checkpoints" / "step-0000002" / "model.safetensors")
    one = load_file(alone.last.model)
    # AdamW turns a gradient of rounding errors into a whole step, so not every number agrees.
    error = torch.cat([(together[name] - one[name]).flatten() for name in one]).norm()
    begun = load_file(train(scene_cache, tmp_path / "begun", steps=1, lr=1e-12).last.model)
    moved = torch.cat([(begun[name] - one[name]).flatten() for name in one]).norm()
    assert error < 0.1 * moved
    metrics = found[0]["result"]["metrics"]
    assert metrics == pytest.approx(dict(alone.last.metrics or {}), abs=0.02)


def test_without_torchrun_there_is_one_rank() -> None:
    with joined("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        values = torch.tensor([1.0, 2.0])
        total = world.sum(values)
        assert torch.equal(total, values)
        assert total is not values
        assert world.gather("a") == ["a"]


@pytest.mark.parametrize(
    ("device", "text"),
    [("gpu0", "device=gpu0 is no device; expected auto, cpu, cuda or cuda:N")],
)
def test_device_that_is_none_is_refused(device: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        pick_device(device)
