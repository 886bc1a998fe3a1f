"""The loader: what it reads, in which order, into which memory, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcache.cache import open_cache
from fcache.data.features import CachedFeatures
from fcache.data.loader import ClipLoader, MicroBatch, StepBatch
from fcache.data.sampling import ClipRequest, ClipSampler, ClipsInOrder, FrameSampling
from fcache.data.targets import ClipLabels
from fcache.data.videos import clip_videos
from fcache.data.windows import TokenWindows
from fcache.errors import CacheCorruptError, ConfigError, LabelError
from fcache.store.cache import Clip, View
from tests.cli.running import run
from tests.data.clips import (
    NORMALISATION,
    Made,
    Placed,
    label_everything,
    make_view,
    single_frames,
)
from tests.extract.making import make_video, words

LARGE = Placed(resize=(80, 133), crop=(3, 7, 77, 100), flip=True)
VIDEOS = {
    **{f"w{k}": Made(4 + k) for k in range(4)},
    **{f"t{k}": Made(5, (LARGE,)) for k in range(3)},
}
KINDS = ("plain", "pyramid", "patch14")
PATCH14 = {f"p{k}": Made(3, (Placed(resize=(56, 84), canvas=(56, 84)),)) for k in range(3)}


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return make_world(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory):
    return make_world(tmp_path_factory.mktemp("plain"), "plain")


def make_world(folder: Path, kind: str) -> tuple[View, ClipLabels]:
    videos = PATCH14 if kind == "patch14" else VIDEOS
    view = make_view(folder / "c", videos, kind)
    return view, ClipLabels(label_everything(folder / "l", videos), "panoptic")


def loader_of(world: tuple[View, ClipLabels], **changes) -> ClipLoader:
    view, labels = world
    windows = TokenWindows.of(view, changes.pop("crop")) if "crop" in changes else None
    sampler = ClipSampler(
        clip_videos(view, labels.reader, "panoptic"),
        FrameSampling(2, 2),
        batch=4,
        micro_batch=2,
        seed=5,
        windows=windows,
    )
    return ClipLoader(view, sampler, labels, **{"micro_batch": 2, "end_step": 5, **changes})


def contents(batch: MicroBatch) -> list[object]:
    """Everything that a micro-batch holds, copied."""
    on_device = batch.to("cpu")
    return [
        [request.name for request in batch.requests],
        [stage.clone() for stage in on_device.stages],
        on_device.pixels.clone(),
        [[one.classes.clone(), one.masks.clone(), one.ids.clone()] for one in on_device.targets],
        on_device.extents,
    ]


def everything(loader: ClipLoader) -> list[tuple[int, list[object]]]:
    with loader:
        return [(step.step, [contents(one) for one in step.micro_batches]) for step in loader]


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(map(same, one, other))
        )
    return one == other


@pytest.mark.parametrize("crop", [None, (32, 64)])
def test_a_batch_holds_what_the_view_and_the_labels_say(world, crop) -> None:
    view, labels = world
    stride = view.index.layout.strides[-1]
    num_steps = 0
    with loader_of(world, **({"crop": crop} if crop else {})) as loader:
        for step in loader:
            num_steps += 1
            assert len(step.micro_batches) == 2
            for batch in step.micro_batches:
                found = batch.to("cpu")
                assert (found.num_clips, found.num_frames) == (2, 2)
                for b, request in enumerate(batch.requests):
                    part = slice(2 * b, 2 * b + 2)
                    clip = view.read(request.video, request.frames, window=request.window)
                    for k, stage in enumerate(found.stages):
                        assert np.array_equal(stage[part].numpy(), clip.floats(k).astype("f4"))
                    assert np.array_equal(batch.clip.pixels[part], clip.pixels)
                    wanted = labels.read(request, stride=stride)
                    one = found.targets[b]
                    assert torch.equal(one.masks, wanted.masks)
                    assert torch.equal(one.classes, wanted.classes)
                    assert one.masks.shape[-2:] == found.pixels.shape[-2:]
    assert num_steps == 5


def test_pixels_are_normalised_as_the_backbone_does_and_zero_in_the_border(plain) -> None:
    mean, std = torch.tensor(NORMALISATION["mean"]), torch.tensor(NORMALISATION["std"])
    sizes = set()
    with loader_of(plain) as loader:
        for step in loader:
            for batch in step.micro_batches:
                found = batch.to("cpu")
                raw = torch.from_numpy(batch.clip.pixels.copy())
                wanted = ((raw.float() - mean) / std).permute(0, 3, 1, 2)
                for b, (request, extent) in enumerate(
                    zip(batch.requests, found.extents, strict=True)
                ):
                    height, width = request.video.valid
                    sizes.add((height, width))
                    pixels = found.pixels[2 * b : 2 * b + 2]
                    inside = wanted[2 * b : 2 * b + 2, :, :height, :width]
                    assert torch.equal(pixels[:, :, :height, :width], inside)
                    assert not pixels[:, :, height:].any()
                    assert not pixels[:, :, :, width:].any()
                    assert extent == (width / pixels.shape[-1], height / pixels.shape[-2])
                assert found.pixels.is_contiguous()
    assert sizes == {(48, 80), (77, 100)}


def test_the_border_of_a_window_is_zero_where_the_frame_ends(plain) -> None:
    view, labels = plain
    video = view.frames("t0")  # 77 x 100 on 96 x 128
    request = ClipRequest(video, (0, 1), (2, 4, 4, 4))  # pixels 32..96, 64..128
    with ClipLoader(view, ClipsInOrder([request]), labels, end_step=1) as loader:
        (step,) = loader
        (batch,) = step.micro_batches
        assert batch.valid == ((45, 36),)
        found = batch.to("cpu")
        assert found.extents == ((36 / 64, 45 / 64),)
        assert found.pixels[:, :, 44, 35].any()
        assert not found.pixels[:, :, 45:].any()
        assert not found.pixels[:, :, :, 36:].any()


def test_pixels_of_patch_14_are_enlarged_to_16_a_token(tmp_path: Path) -> None:
    world = make_world(tmp_path, "patch14")
    with loader_of(world, end_step=1) as loader:
        for step in loader:
            batch = step.micro_batches[0]
            found = batch.to("cpu")
            assert batch.clip.pixels.shape[1:3] == (56, 84)
            mean, std = torch.tensor(NORMALISATION["mean"]), torch.tensor(NORMALISATION["std"])
            raw = (torch.from_numpy(batch.clip.pixels.copy()).float() - mean) / std
            wanted = F.interpolate(
                raw.permute(0, 3, 1, 2), scale_factor=8 / 7, mode="bilinear", align_corners=False
            )
            assert found.pixels.shape == (4, 3, 64, 96)
            assert torch.allclose(found.pixels, wanted, atol=1e-5)
            assert found.stages[0].shape[1:3] == (4, 6)
            assert found.extents == ((1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize(("num_readers", "ahead"), [(1, 0), (1, 3), (2, 1), (5, 2)])
def test_the_number_of_readers_changes_nothing(plain, num_readers: int, ahead: int) -> None:
    wanted = everything(loader_of(plain, num_readers=1, ahead=1))
    assert [step for step, _ in wanted] == [0, 1, 2, 3, 4]
    assert same(everything(loader_of(plain, num_readers=num_readers, ahead=ahead)), wanted)


def test_a_loader_that_starts_later_goes_on_as_the_whole_run(plain) -> None:
    whole = everything(loader_of(plain))
    for first in (1, 3):
        assert same(everything(loader_of(plain, first_step=first)), whole[first:])


def test_ranks_share_out_the_micro_batches_of_one_process(plain) -> None:
    whole = everything(loader_of(plain))
    ranks = [everything(loader_of(plain, rank=rank, world_size=2)) for rank in range(2)]
    for (step, parts), (_, first), (_, second) in zip(whole, *ranks, strict=True):
        assert len(first) == len(second) == 1
        assert same(parts, [*first, *second]), step


def test_ranks_of_one_clip_each_see_what_one_process_sees(plain) -> None:
    # Where the sampler's micro-batch is larger than a rank's, its clips are shared out in turn.
    whole = everything(loader_of(plain, micro_batch=1))
    ranks = [
        everything(loader_of(plain, micro_batch=1, rank=rank, world_size=4)) for rank in range(4)
    ]
    for (_, parts), *others in zip(whole, *ranks, strict=True):
        assert same(parts, [part for _, (part,) in others])


def addresses(step: StepBatch) -> list[int]:
    """Where features and each clip's masks start; all that follows lies in the same memory."""
    found = []
    for batch in step.micro_batches:
        found.append(batch.clip.blocks[0].ctypes.data)
        found += [targets.masks.data_ptr() for targets in batch.targets]
    return found


def test_memory_is_used_again_and_does_not_grow(plain) -> None:
    with loader_of(plain, end_step=40, ahead=1) as loader:
        steps = [addresses(step) for step in loader][20:]
    # Two steps are held in turn, each in memory of its own.
    assert steps[2:] == steps[:-2]
    assert not set(steps[0]) & set(steps[1])
    assert len({address for step in steps for address in step}) == 2 * 6


def test_a_step_is_not_overwritten_while_it_is_used(plain) -> None:
    with loader_of(plain, end_step=12, ahead=3, num_readers=3) as loader:
        for step in loader:
            before = [contents(batch) for batch in step.micro_batches]
            time.sleep(0.02)  # readers go on
            assert same([contents(batch) for batch in step.micro_batches], before)


def test_stages_on_the_cpu_share_the_memory_that_was_read(plain) -> None:
    with loader_of(plain, end_step=1) as loader:
        for step in loader:
            batch = step.micro_batches[0]
            found = batch.to("cpu", torch.float16)
            assert found.stages[1].dtype == torch.float16
            address = found.stages[1].data_ptr()
            block = batch.clip.blocks[0]
            assert block.ctypes.data < address < block.ctypes.data + block.nbytes


def test_names_are_those_of_images_and_differ(plain) -> None:
    seen = []
    with loader_of(plain) as loader:
        for step in loader:
            for batch in step.micro_batches:
                assert len(batch.names) == 4
                assert batch.to("cpu").names == batch.names
                seen += batch.names
    assert len(set(seen)) == len(seen) == 40


def test_frames_are_read_once_in_order_for_validation(plain) -> None:
    view, labels = plain
    requests = single_frames(clip_videos(view, labels.reader, "panoptic"))
    order = ClipsInOrder(requests, batch=3)
    with ClipLoader(view, order, labels, end_step=order.num_steps) as loader:
        found = [one.requests[0].name for step in loader for one in step.micro_batches]
    assert found == [request.name for request in requests]


def readers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("fcache-reader")]


def test_close_ends_the_readers(plain) -> None:
    loader = loader_of(plain, end_step=None, num_readers=3, ahead=4)
    steps = iter(loader)
    next(steps)
    assert readers()
    loader.close()
    assert not readers()
    assert list(steps) == []
    assert list(loader) == []


def test_a_run_that_is_left_early_ends_its_readers(plain) -> None:
    def leave() -> None:
        with loader_of(plain, end_step=None) as loader:
            for step in loader:
                if step.step == 2:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert not readers()


def test_the_wait_for_data_is_measured(plain) -> None:
    view, labels = plain

    class Slow(CachedFeatures):
        def read(self, request: ClipRequest, out: Clip) -> None:
            time.sleep(0.05)
            super().read(request, out)

    requests = single_frames(clip_videos(view, labels.reader, "panoptic"))[:4]
    slow = ClipLoader(Slow(view), ClipsInOrder(requests), labels, end_step=4, ahead=0)
    with slow:
        waits = [step.waited_s for step in slow]
    assert all(0.045 < wait < 2 for wait in waits)
    assert slow.waited_s == pytest.approx(sum(waits))
    with ClipLoader(
        Slow(view), ClipsInOrder(requests), labels, end_step=4, ahead=3, num_readers=4
    ) as quick:
        for _ in quick:
            time.sleep(0.1)
    assert quick.waited_s < 0.6 * slow.waited_s


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_a_reader_meets_is_raised_in_the_loop(tmp_path: Path, ahead: int) -> None:
    world = make_world(tmp_path, "plain")
    for path in (tmp_path / "l" / "pan" / "w1").glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(LabelError, match=r"video 'w1' frame '\d+': label .* is not an image"):
        everything(loader_of(world, ahead=ahead))
    assert not readers()


def test_a_damaged_shard_is_raised_in_the_loop(tmp_path: Path) -> None:
    view, _ = world = make_world(tmp_path, "plain")
    for path in view.folder.glob("*/tokens/c/*/**/*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[: len(content) // 2] = bytes(len(content) // 2)
            path.write_bytes(content)
    with pytest.raises(CacheCorruptError):
        everything(loader_of(world))


def test_clips_of_different_sizes_are_no_micro_batch(plain) -> None:
    view, labels = plain
    clips = ClipsInOrder([ClipRequest(view.frames(name), (0,)) for name in ("w0", "t0")], batch=2)
    with (
        pytest.raises(ValueError, match="out= holds"),
        ClipLoader(view, clips, labels, micro_batch=2) as loader,
    ):
        next(iter(loader))


@pytest.mark.parametrize(("micro_batch", "world_size"), [(3, 1), (2, 3), (1, 8)])
def test_a_batch_that_ranks_do_not_fill_is_refused(plain, micro_batch, world_size) -> None:
    with pytest.raises(ConfigError, match=f"batch=4 is not filled by {world_size} ranks"):
        loader_of(plain, micro_batch=micro_batch, world_size=world_size)


class Live:
    """Features of one's own: pixels are read, stages are computed from them in the loop."""

    mean, std, stride, whole = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 16, False

    def __init__(self, view: View) -> None:
        self.view = view
        self.threads: set[str] = set()

    def empty(self, requests: Sequence[ClipRequest], allocate=np.empty) -> Clip:
        bucket = requests[0].video.item.bucket
        pixels = allocate((len(requests), bucket.height, bucket.width, 3), "uint8")
        return Clip((), pixels, (bucket.height, bucket.width), "float32", (pixels,))

    def read(self, request: ClipRequest, out: Clip) -> None:
        out.pixels[...] = self.view.read(request.video, request.frames).pixels

    def stages(
        self,
        clip: Clip,
        requests: Sequence[ClipRequest],
        pixels: torch.Tensor,
        dtype: torch.dtype,
    ) -> list[torch.Tensor]:
        self.threads.add(threading.current_thread().name)
        return [F.avg_pool2d(pixels, 16).permute(0, 2, 3, 1).to(dtype)] * 4


def test_other_features_take_the_place_of_a_view(plain) -> None:
    view, labels = plain
    source = Live(view)
    requests = single_frames(clip_videos(view, labels.reader, "panoptic"))[:3]
    with ClipLoader(source, ClipsInOrder(requests), labels, end_step=3) as loader:
        for step, request in zip(loader, requests, strict=True):
            found = step.micro_batches[0].to("cpu")
            clip = view.read(request.video, request.frames)
            height, width = request.video.valid
            pixels = torch.zeros(found.pixels.shape)
            inside = torch.from_numpy(clip.pixels[:, :height, :width]).permute(0, 3, 1, 2)
            pixels[:, :, :height, :width] = inside
            wanted = F.avg_pool2d(pixels, 16).permute(0, 2, 3, 1)
            assert torch.equal(found.stages[2], wanted)
    assert source.threads == {"MainThread"}


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_crops_of_a_compact_view_come_back_as_their_floats(tmp_path: Path, model: str) -> None:
    for name in "ab":
        make_video(tmp_path / "v" / f"{name}.mp4", 3)
    blocks = "[1,2,4,5]" if model == "test_vit" else "none"
    settings = words(dtype="int8", crop="32x48", crops=3, model=model, blocks=blocks)
    code, _, err = run(
        "extract", tmp_path / "v", "--cache", tmp_path / "c", "--scheduler", "inline", *settings
    )
    assert code == 0, err
    view = open_cache(tmp_path / "c").view()
    made = {name: Made(3, (Placed((48, 64)),)) for name in "ab"}
    labels = ClipLabels(label_everything(tmp_path / "l", made), "panoptic")
    videos = clip_videos(view, labels.reader, "panoptic")
    sampler = ClipSampler(videos, FrameSampling(2, 1), batch=4, micro_batch=2)
    draws = set()
    with ClipLoader(view, sampler, labels, micro_batch=2, end_step=6) as loader:
        for step in loader:
            for batch in step.micro_batches:
                found = batch.to("cpu")
                for b, request in enumerate(batch.requests):
                    draws.add(request.draw)
                    clip = view.read(request.video, request.frames)
                    for k, stage in enumerate(found.stages):
                        assert np.array_equal(stage[2 * b : 2 * b + 2].numpy(), clip.floats(k))
                    masks = labels.read(request, stride=view.index.layout.strides[-1]).masks
                    assert torch.equal(found.targets[b].masks, masks)
    assert draws == {0, 1, 2}


def iterate(loader: ClipLoader) -> Iterator[int]:
    for step in loader:
        yield step.step


def test_a_loader_can_be_read_again(plain) -> None:
    with loader_of(plain) as loader:
        assert list(iterate(loader)) == list(iterate(loader)) == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_on_a_gpu_are_those_of_the_cpu(plain, pin_memory: bool) -> None:
    wanted = everything(loader_of(plain, end_step=20))
    found = []
    with loader_of(plain, end_step=20, pin_memory=pin_memory) as loader:
        for step in loader:
            moved = [batch.to("cuda") for batch in step.micro_batches]
            found.append(moved)  # looked at only when its memory was used again
    for (_, parts), moved in zip(wanted, found, strict=True):
        for (_, stages, pixels, targets, extents), batch in zip(parts, moved, strict=True):
            assert same([stage.cpu() for stage in batch.stages], stages)
            assert torch.allclose(batch.pixels.cpu(), pixels, atol=1e-5)
            masks = [[one.classes.cpu(), one.masks.cpu(), one.ids.cpu()] for one in batch.targets]
            assert same(masks, targets)
            assert batch.extents == extents


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_page_locked_memory_without_a_gpu_is_refused(plain) -> None:
    with pytest.raises(ConfigError, match="pin_memory=true needs a CUDA device"):
        loader_of(plain, pin_memory=True)
