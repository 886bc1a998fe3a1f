from __future__ import annotations

import numpy as np
import pytest
import torch

from fcache.data.dequantise import dequantise


def stored(shape=(3, 2, 4, 5, 6), seed: int = 0):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(-127, 128, shape).astype(np.int8))
    scale = torch.from_numpy(np.exp(3 * rng.standard_normal(shape[:-1])).astype(np.float16))
    channels = torch.from_numpy(np.exp(rng.standard_normal(shape[-1:])).astype(np.float32))
    return values, scale, channels


def exact(values, scale, channels):
    """The formula in float64, where both products are exact."""
    return values.double() * scale.double()[..., None] * channels.double()


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 4, 5, 6), (3, 2, 4, 5, 6)])
def test_float32_is_the_exact_product_rounded_once(shape) -> None:
    found = dequantise(*stored(shape))
    assert found.dtype == torch.float32
    assert torch.equal(found, exact(*stored(shape)).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types_are_float32_rounded_once_more(dtype) -> None:
    found = dequantise(*stored(), dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found, exact(*stored()).float().to(dtype))


def test_every_value_of_the_store_is_read_back() -> None:
    # All int8 levels against the smallest subnormal, an ordinary and the largest token scale.
    values = torch.arange(-127, 128, dtype=torch.int8).reshape(1, 1, 255).repeat(1, 3, 1)
    scale = torch.tensor([[2.0**-24, 0.0131, 65504]]).half()
    channels = torch.full((255,), 1.7)
    found = dequantise(values, scale, channels)
    assert torch.equal(found, exact(values, scale, channels).float())
    assert torch.isfinite(found).all()
    assert torch.isinf(dequantise(values, scale, channels, torch.float16)[0, 2, 0])


def test_inputs_are_left_as_they_were() -> None:
    given = stored()
    dequantise(*given)
    for tensor, before in zip(given, stored(), strict=True):
        assert torch.equal(tensor, before)


def test_wrong_shapes_and_types_are_refused() -> None:
    values, scale, channels = stored()
    with pytest.raises(ValueError, match=r"expected int8 \[\.\.\., H, W, C\]"):
        dequantise(values.float(), scale, channels)
    with pytest.raises(ValueError, match="expected int8"):
        dequantise(values, scale.float(), channels)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        dequantise(values, scale, channels[:5])
    with pytest.raises(ValueError, match="expected int8"):
        dequantise(values, scale[:1], channels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_reads_the_same_bits() -> None:
    found = dequantise(*(tensor.cuda() for tensor in stored()))
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), dequantise(*stored()))
