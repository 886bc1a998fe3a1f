"""Where ground truth and submissions lie: data sets as downloaded, folders, zips."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fcache.data.archive import Place, Zipped, open_zip, unpack
from fcache.data.scored_panoptic import PanopticFiles
from fcache.errors import ConfigError, LabelError
from fcache.manifest import Labels, Manifest


def find_truth(
    root: Path, truth_json: Path | None, manifest: Manifest, split: str
) -> PanopticFiles:
    """Returns the panoptic ground truth of a split.

    Args:
        root: The data set's folder in the manifest's layout; or, with ``truth_json``, the folder
            of PNGs.
        truth_json: The JSON, where it lies elsewhere.
        manifest: Says where PNGs and JSON lie below the root.
        split: Which JSON.

    Raises:
        ConfigError: there is no such folder or JSON, or the manifest has no panoptic labels of one
            folder and one JSON a split.
    """
    if not root.is_dir():
        raise ConfigError(f"the ground truth '{root}' is not a folder.")
    labels = _panoptic_labels(manifest)
    folder = root / _folder(labels).format(split=split) if labels is not None else root
    if truth_json is not None:
        return PanopticFiles(truth_json, folder if folder.is_dir() else root)
    if labels is None:
        raise ConfigError(
            f"manifest '{manifest.name}' does not keep its panoptic labels as one folder and one "
            "JSON a split; name the JSON with --truth-json FILE."
        )
    json_path = root / str(labels.json_path).format(split=split)
    if not json_path.is_file():
        raise ConfigError(
            f"'{root}' does not hold '{json_path.relative_to(root)}', the panoptic JSON of split "
            f"'{split}' of {manifest.name}; expected the data set's folder, or --truth-json FILE."
        )
    return PanopticFiles(json_path, folder)


def find_submission(prediction: Path, scratch: Path) -> PanopticFiles:
    """Returns the maps of a VIPSeg submission: ``pred.json`` and ``pan_pred``.

    Args:
        prediction: Its folder, or a zip of it.
        scratch: An empty folder, for a zip's JSON; its PNGs are read where they are.

    Raises:
        ConfigError: there is no such folder or file.
        LabelError: the zip is damaged or holds no ``pred.json``.
    """
    if _check(prediction).is_dir():
        return PanopticFiles(prediction / "pred.json", prediction / "pan_pred")
    top, names = open_zip(prediction)
    file = _shallowest(names, "pred.json")
    if file is None:
        raise LabelError(f"'{prediction}' holds no pred.json; expected it beside pan_pred/.")
    return PanopticFiles(unpack(top / file, scratch), _beside(top, file) / "pan_pred")


def find_masks(prediction: Path, first: str) -> Place:
    """Returns the folder of a VSPW submission's videos.

    Args:
        prediction: It, or a zip of it.
        first: A video that lies in it.

    Raises:
        ConfigError: there is no such folder or file.
        LabelError: the zip is damaged.
    """
    if _check(prediction).is_dir():
        return prediction
    top, names = open_zip(prediction)
    if (top / first).is_dir():
        return top
    # Many zip the folder itself, not what is in it.
    outer = {name.partition("/")[0] for name in names}
    return top / outer.pop() if len(outer) == 1 else top


def find_coco_predictions(prediction: Path, scratch: Path) -> PanopticFiles:
    """Returns COCO panoptic predictions: a JSON, and PNGs in a folder of its name or beside it.

    Args:
        prediction: The JSON, the folder that holds it, or a zip.
        scratch: An empty folder, for a zip's JSON.

    Raises:
        ConfigError: there is no such folder or file, or it does not hold one JSON.
        LabelError: the zip is damaged.
    """
    if prediction.suffix == ".json" and prediction.is_file():
        return PanopticFiles(prediction, _pngs(prediction.parent, prediction.stem))
    if _check(prediction).is_dir():
        found = sorted(path.name for path in prediction.glob("*.json"))
        name = _only(found, prediction)
        return PanopticFiles(prediction / name, _pngs(prediction, PurePosixPath(name).stem))
    top, names = open_zip(prediction)
    name = _only([name for name in names if name.endswith(".json")], prediction)
    path = unpack(top / name, scratch)
    return PanopticFiles(path, _pngs(_beside(top, name), path.stem))


def _panoptic_labels(manifest: Manifest) -> Labels | None:
    for labels in manifest.labels:
        if labels.format == "panoptic" and "{video}" not in str(labels.json_path) + _folder(labels):
            return labels
    return None


def _folder(labels: Labels) -> str:
    """The part of a labels' path that all frames share; empty where videos come first."""
    of_videos = labels.path.partition("/{video}/")[0]
    return PurePosixPath(labels.path).parent.as_posix() if of_videos == labels.path else of_videos


def _check(prediction: Path) -> Path:
    if prediction.is_dir() or (prediction.is_file() and prediction.suffix == ".zip"):
        return prediction
    what = "is neither a folder nor a zip" if prediction.exists() else "does not exist"
    raise ConfigError(f"the prediction '{prediction}' {what}.")


def _shallowest(names: list[str], file: str) -> str | None:
    found = [name for name in names if PurePosixPath(name).name == file]
    return min(found, key=lambda name: name.count("/"), default=None)


def _beside(top: Zipped, name: str) -> Zipped:
    parent = PurePosixPath(name).parent.as_posix()
    return top if parent == "." else top / parent


def _only(found: list[str], where: Path) -> str:
    if len(found) != 1:
        what = ", ".join(found[:5]) or "none"
        raise ConfigError(
            f"'{where}' is to hold the one JSON of the predictions and holds {len(found)} "
            f"({what}); expected one, or the JSON's own path."
        )
    return found[0]


def _pngs(folder: Place, stem: str) -> Place:
    inner = folder / stem
    return inner if inner.is_dir() else folder
