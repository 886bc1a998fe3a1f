"""What is told on stderr while an extraction runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fcache.cli.output import Progress

if TYPE_CHECKING:
    from fcache.extract.plan import ExtractPlan


_WAITS = {
    "no_workers": "waiting for a first worker at {scheduler}",
    "workers_lost": "no workers left at {scheduler}; waiting for one",
    "scheduler_silent": "the scheduler at {scheduler} does not answer; waiting for it",
    "back": "going on with {workers} workers at {scheduler}",
}


def show_event(progress: Progress, event: dict[str, Any], plan: ExtractPlan | None = None) -> None:
    """Tells of what workers, or the job, report; commits need the plan."""
    kind = event["event"]
    if kind == "start":
        progress.start()
    elif kind == "commit" and plan is not None:
        progress.advance(
            event["frames"],
            event["bytes"],
            cost=event["frames"] * plan.frame_cost(event["bucket"]),
            worker=event.get("worker", ""),
            num_workers=event.get("workers", 1),
        )
    elif kind in {"quarantined", "failed"}:
        progress.note(event, f"{kind} {event['video']}: {event['reason']}")
    elif kind == "stopping":
        progress.note(event, "stopping after the shards at hand; Ctrl-C again stops at once")
    elif kind == "provenance":
        differing = ", ".join(
            f"{name} {found[-1]} (it was {', '.join(found[:-1])})"
            for name, found in event["differences"].items()
        )
        progress.note(
            event, f"this view was made with other versions: {differing}; values may differ by bits"
        )
    elif kind == "halved":
        progress.note(
            event, f"out of memory: canvases of {event['canvas']} go {event['batch']} at a time"
        )
    elif kind == "waiting":
        progress.note(event, f"waiting for {event['videos']} videos that another job is writing")
    elif kind in _WAITS:
        progress.note(event, _WAITS[kind].format_map(event))
