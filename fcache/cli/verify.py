"""``fcache verify``."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fcache.cli.output import Progress, emit_json, human_bytes
from fcache.errors import CacheCorruptError, ConfigError, InterruptedJobError

if TYPE_CHECKING:
    from fcache.store.findings import Finding
    from fcache.store.resume import ShardPass
    from fcache.store.scrub import Sample


def verify(
    cache: Annotated[str, typer.Argument(metavar="CACHE[@KEY]", help="Folder of the cache.")],
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="5%|N", help="Read only a share, or a number, of the shard files, at random."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Which sample; without it each is another.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted verify stopped.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Mend damaged records; take damaged shards back, so that extract makes them "
            "again.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check that everything committed is there, and is what was committed."""
    drawn = _sample_of(sample, seed, resume=resume)
    work = _Work(cache, drawn, resume=resume, repair=repair)
    work.read()
    partial = work.finish()
    if as_json:
        _print_json(work, partial)
    else:
        _print_text(work, partial)
    if work.findings:
        raise _found(work)
    if partial:
        raise typer.Exit(1)


def _sample_of(amount: str | None, seed: int | None, *, resume: bool) -> Sample | None:
    from fcache.store.scrub import Sample

    if resume and (amount is not None or seed is not None):
        raise ConfigError(
            "--resume goes on with the files that the interrupted verify drew; leave --sample and "
            "--seed out."
        )
    if amount is None:
        if seed is not None:
            raise ConfigError(
                f"--seed {seed} says which sample; expected --sample 5% or --sample N."
            )
        return None
    return Sample(amount, secrets.randbelow(2**32) if seed is None else seed)


class _Work:
    """What is checked, in this order: the cache's document, the views' records, their shards."""

    def __init__(self, cache: str, sample: Sample | None, *, resume: bool, repair: bool) -> None:
        from fcache.store.repair import examine, examine_root
        from fcache.store.resume import open_passes
        from fcache.store.root import split_key, view_folders

        self.cache, self.repair, self.resume, self._told = cache, repair, resume, False
        self.path, prefix = split_key(cache)
        self.findings: list[Finding] = examine_root(self.path, repair=repair)
        self.views = [examine(one, repair=repair) for one in view_folders(self.path, prefix)]
        for view in self.views:
            self.findings += view.findings
        self.passes, self.num_earlier = open_passes(
            self.views, sample, resume=resume, mended=self.findings if repair else ()
        )
        if repair:
            found = [*self.findings, *(finding for one in self.passes for finding in one.mended)]
            self.findings = list(dict.fromkeys(found))

    @property
    def num_files(self) -> int:
        """Shard files to read."""
        return sum(len(one.keys) for one in self.passes)

    @property
    def num_bytes(self) -> int:
        """Their size."""
        return sum(one.size_bytes for one in self.passes)

    @property
    def sample(self) -> Sample | None:
        """What they are drawn by."""
        return self.passes[0].sample if self.passes else None

    def read(self) -> None:
        """Reads the shard files.

        Raises:
            InterruptedJobError: Ctrl-C; it says how far this came.
        """
        with Progress("verify", self.num_files, "files") as progress:
            self._tell_of_earlier(progress)
            try:
                for one in self.passes:
                    for checked in one.run():
                        progress.advance(1, checked.size_bytes)
                        self._tell_if_unsaved(one, progress)
            except KeyboardInterrupt:
                for one in self.passes:
                    one.save()
                raise self._interrupted() from None
        for one in self.passes:
            self.findings += one.findings

    def finish(self) -> list[str]:
        """Takes damaged shards back if that is asked; returns the ids of unfinished videos."""
        from fcache.store.repair import mend
        from fcache.store.resume import forget_progress
        from fcache.store.verify import unfinished

        partial = []
        for one in self.passes:
            state = one.state
            if self.repair and one.findings:
                mend(one.index, one.findings)
                state = one.index.load()
            partial += unfinished(one.index, state)
        forget_progress(self.passes)
        return partial

    def _tell_of_earlier(self, progress: Progress) -> None:
        num_done = sum(one.num_done for one in self.passes)
        if num_done:
            progress.advance(num_done)
            progress.start()
        elif self.num_earlier and not self.resume:
            text = "an interrupted verify has read a part of this; --resume goes on from there"
            progress.note({"event": "interrupted_before"}, text)
        elif self.resume:
            text = "no interrupted verify has left its progress here: this reads every file"
            progress.note({"event": "nothing_to_resume"}, text)

    def _tell_if_unsaved(self, one: ShardPass, progress: Progress) -> None:
        if one.unsaved is not None and not self._told:
            self._told = True
            event = {"event": "not_resumable", "reason": one.unsaved}
            progress.note(event, f"an interrupt could not be resumed: {one.unsaved}")

    def _interrupted(self) -> InterruptedJobError:
        num_done = sum(one.num_done for one in self.passes)
        num_found = len(self.findings) + sum(len(one.findings) for one in self.passes)
        text = f"stopped after {num_done:,} of {self.num_files:,} shard files, "
        text += f"{num_found} problems so far"
        options = ["--repair"] if self.repair else []
        reasons = [one.unsaved for one in self.passes if one.unsaved is not None]
        if reasons:
            text += f"; it cannot be resumed: {reasons[0]}"
            if self.sample:
                options += ["--sample", self.sample.amount, "--seed", str(self.sample.seed)]
        else:
            text += "."
            options.insert(0, "--resume")
        return InterruptedJobError(text, run=" ".join([f"fcache verify '{self.cache}'", *options]))


def _print_json(work: _Work, partial: list[str]) -> None:
    content = {
        "bytes": work.num_bytes,
        "findings": [{**asdict(one), "path": str(one.path)} for one in work.findings],
        "unfinished": partial,
    }
    if work.sample:
        content["sample"] = {
            **asdict(work.sample),
            "files": work.num_files,
            "of": sum(one.num_committed for one in work.passes),
        }
    emit_json("verify", content)


def _print_text(work: _Work, partial: list[str]) -> None:
    what = human_bytes(work.num_bytes)
    if work.sample:
        of = sum(one.num_committed for one in work.passes)
        what = (
            f"a sample of {work.num_files:,} of {of:,} shard files (--sample {work.sample.amount} "
            f"--seed {work.sample.seed}), {what}"
        )
    print(f"checked {what}: {len(work.findings)} problems")
    for one in work.findings:
        videos = f" ({', '.join(one.videos)})" if one.videos else ""
        print(f"  {one.path}: {one.problem}{videos}")
    for view in work.views:
        if view.state is None:
            print(f"view {view.folder.name}: no shard file was read, its records come first")
    num_behind = sum(view.num_behind for view in work.views)
    if num_behind and not work.repair:
        print(
            f"{num_behind} records have no second copy yet; the next extract makes it, or "
            f"fcache verify '{work.cache}' --repair"
        )
    if partial:
        print(f"{len(partial)} videos are unfinished, first '{partial[0]}'; extract resumes them")


def _found(work: _Work) -> CacheCorruptError:
    """The error that a cache with problems ends with."""
    text = f"{len(work.findings)} problems in '{work.path}'"
    counts = Counter(one.remedy for one in work.findings)
    if not work.repair:
        mended = f"fcache verify '{work.cache}' --repair" if set(counts) - {None} else None
        return CacheCorruptError(f"{text}.", run=mended)
    shards = {
        (one.path.relative_to(work.path).parts[0], one.bucket, one.shard)
        for one in work.findings
        if one.remedy == "remake"
    }
    done = {
        "restored from a second copy": counts["restore"],
        "written again": counts["rewrite"],
        "removed": counts["remove"],
        "shards taken back": len(shards),
        "beyond repair": counts[None],
    }
    text += "".join(f", {count} {what}" for what, count in done.items() if count)
    hurt = {
        one.path.relative_to(work.path).parts[0]
        for one in work.findings
        if one.remedy in ("remake", "remove")
    }
    if not hurt:
        return CacheCorruptError(text + ".")
    copies = {one.folder.name for one in work.views if one.is_copy}
    again = [what for what, some in (("extract", hurt - copies), ("copy", hurt & copies)) if some]
    return CacheCorruptError(f"{text}; run the same {' and '.join(again)} again.")
