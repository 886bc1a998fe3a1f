"""Mending what ``verify`` finds: from second copies, from what is derived, by making it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fcache.errors import CacheCorruptError, CacheNotFoundError
from fcache.store.files import copy_of, write_whole
from fcache.store.findings import Finding
from fcache.store.index import ViewIndex, ViewState
from fcache.store.journal import read_journal
from fcache.store.layout import Bucket
from fcache.store.locks import locked
from fcache.store.mirror import pairs
from fcache.store.root import ROOT_DOCUMENT, check_root_document
from fcache.store.verify import check_copies, check_metadata, check_records, is_sound


@dataclass(slots=True)
class Examined:
    """A view whose records have been checked, and perhaps mended.

    Attributes:
        folder: The view's.
        findings: What is, or was, wrong with its records.
        num_behind: Sound files that have no second copy, or that of an older state.
        index: Its bookkeeping; None if the view's own document is damaged.
        state: What the bookkeeping says; None if that cannot be read.
    """

    folder: Path
    findings: list[Finding] = field(default_factory=list)
    num_behind: int = 0
    index: ViewIndex | None = None
    state: ViewState | None = None

    @property
    def is_copy(self) -> bool:
        """Whether ``fcache copy`` made it."""
        return self.index is not None and "derived_from" in self.index.identity


def examine_root(path: Path, *, repair: bool) -> list[Finding]:
    """Checks the document that makes a folder a cache, and writes it again where that is asked.

    Raises:
        CacheNotFoundError, CacheError: there is no cache that this version can read.
    """
    problem = check_root_document(path)
    if problem is None:
        return []
    if repair:
        write_whole(path / "zarr.json", ROOT_DOCUMENT)
    return [Finding(path / "zarr.json", problem, remedy="rewrite")]


def examine(folder: Path, *, repair: bool) -> Examined:
    """Checks the records of a view, and mends them first where that is asked.

    Args:
        folder: The view's, whatever is left of it.
        repair: Whether to write. Shard files are left to the caller.

    Raises:
        CacheError: the view is of a newer layout, or cannot be written.
    """
    view = Examined(folder)
    copies = folder / "index"
    view.findings, view.num_behind = check_copies(copies)
    if repair and (view.findings or view.num_behind):
        _restore(copies)
    try:
        view.index = ViewIndex(folder)
        view.findings += check_records(view.index)
        if repair:
            mend(view.index, view.findings)
        view.state = view.index.load()
    except (CacheCorruptError, CacheNotFoundError) as error:
        if not view.findings:
            view.findings.append(Finding(folder, error.message))
        return view
    found = list(check_metadata(view.index, view.state))
    if repair and found:
        mend(view.index, found)
        view.state = view.index.load()
    view.findings = list(dict.fromkeys([*view.findings, *found]))
    return view


def mend(index: ViewIndex, findings: Iterable[Finding]) -> None:
    """Mends what needs no second copy.

    Records that are cheap to lose go, documents are written again, damaged row groups are
    forgotten, so that the next extract makes them.
    """
    findings = list(findings)
    shards: dict[Bucket, set[int]] = {}
    for one in findings:
        if one.remedy == "remake" and one.bucket is not None and one.shard is not None:
            shards.setdefault(one.bucket, set()).add(one.shard)
    with locked(index.index / "lock"):
        for one in findings:
            # A job may have written it again since it was looked at.
            if one.remedy == "remove" and not is_sound(one.path):
                one.path.unlink(missing_ok=True)
                copy_of(index.index, one.path).unlink(missing_ok=True)
        if any(one.remedy == "rewrite" for one in findings):
            _rewrite(index)
    for bucket, numbers in shards.items():
        index.forget(bucket, numbers)


def _restore(copies: Path) -> None:
    """Restores the files that have a second copy, and the copies."""
    with locked(copies / "lock"):
        for pair in pairs(copies):
            pair.mend()


def _rewrite(index: ViewIndex) -> None:
    for path, document in index.documents(read_journal(index.index)).items():
        if not path.exists() or path.read_bytes() != document:
            write_whole(path, document)
