"""The job as a Ray Data pipeline: decode, one actor with the network, zarr-python.

Reader, geometry and network are fcache's own, so that only the plumbing differs. Rows are known in
advance, as the one who writes such a pipeline would arrange it; nothing resumes, and nothing is
flushed to the disk. Run by ``bench_extract.py`` in an interpreter that has Ray Data.

    python tests/bench/ray_peer.py '[[SETTING, ...], [VIDEO, ...], FRAMES_OF_A_VIDEO, OUTPUT]'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # where `tests` is, when run as a script

from tests.bench.bare_loop import batches, config_of, digest

RAMP_FRAMES = 16  # not counted, as an extraction's first shard is not
WRITE_FRAMES = 4  # handed to a writer together
LOGICAL_CPUS = 4  # so that decoding and writing need not take turns with the network


class Network:
    """The frozen network, kept by an actor."""

    def __init__(self, words: list[str]) -> None:
        import torch

        from fcache.backbones.build import load
        from fcache.extract.producer import TORCH_DTYPES, choose_device

        config = config_of(words)
        self._device = choose_device(config.device)
        self._dtype = TORCH_DTYPES[config.dtype]
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._net = load(config.backbone, device=self._device, keep_hash=False)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds ``tokens`` [B, S, h, w, C]."""
        import torch

        canvases = torch.from_numpy(np.ascontiguousarray(batch["canvas"])).to(self._device)
        with torch.inference_mode():
            stages = self._net(canvases, [tuple(valid) for valid in batch["valid"].tolist()])
            tokens = torch.stack([stage.to(self._dtype) for stage in stages], dim=1)
        return {**batch, "tokens": tokens.cpu().numpy()}


def decoded(words: list[str], source: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a video."""
    row = source["first_row"]
    for canvases, valid in batches(Path(source["path"]), config_of(words)):
        for canvas in canvases:
            yield {"row": row, "canvas": canvas, "valid": np.array(valid)}
            row += 1


def written(output: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Writes rows; returns when each was there."""
    import zarr

    group = zarr.open_group(output, mode="r+")
    for row, tokens, canvas in zip(batch["row"], batch["tokens"], batch["canvas"], strict=True):
        group["tokens"][int(row)] = tokens
        group["pixels"][int(row)] = canvas
    return {"row": batch["row"], "at_s": np.full(len(batch["row"]), time.time())}


def main() -> None:
    """Runs the pipeline and prints frames counted, their seconds, and a digest of each video."""
    import ray
    import zarr

    from fcache.backbones.build import describe
    from fcache.extract.producer import choose_device

    words, videos, video_frames, output = json.loads(sys.argv[1])
    config = config_of(words)
    canvas = next(batches(Path(videos[0]), config))[0][0]
    num_frames = len(videos) * video_frames
    stages = describe(config.backbone).stages
    side = stages[0].stride
    shape = (len(stages), canvas.shape[0] // side, canvas.shape[1] // side, stages[0].channels)
    group = zarr.create_group(output)
    chunks = {"tokens": (1, 1, *shape[1:]), "pixels": (1, *canvas.shape)}
    for name, sides in (("tokens", shape), ("pixels", canvas.shape)):
        dtype = config.dtype if name == "tokens" else "uint8"
        group.create_array(
            name, shape=(num_frames, *sides), chunks=chunks[name], dtype=dtype, compressors=None
        )
    on_gpu = choose_device(config.device).type == "cuda"
    ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    sources = [{"path": v, "first_row": k * video_frames} for k, v in enumerate(videos)]
    rows = (
        ray.data.from_items(sources, override_num_blocks=len(sources))
        .flat_map(lambda source: decoded(words, source))
        .map_batches(
            Network,
            fn_constructor_args=(words,),
            batch_size=config.batch,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_gpus=int(on_gpu),
        )
        .map_batches(lambda batch: written(output, batch), batch_size=WRITE_FRAMES)
        .take_all()
    )
    times_s = sorted(float(row["at_s"]) for row in rows)
    counted = times_s[RAMP_FRAMES:]
    firsts = [digest(list(group["tokens"][k * video_frames])) for k in range(len(videos))]
    print(json.dumps([len(counted), counted[-1] - times_s[RAMP_FRAMES - 1], firsts]))


if __name__ == "__main__":
    main()
