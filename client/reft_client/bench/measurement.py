"""One run: learn the references if they are wanted, send the load, add up what came back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .document import build_document
from .live import LiveView
from .load import Load
from .options import BenchOptions
from .plan import Plan
from .processes import run_processes
from .sender import Sender
from .verification import References, learn_references, verify
from .worker import Job, Outcome, Snapshot, connection_of, run_job

__all__ = ["measure"]


async def measure(job: Job, plan: Plan, view: LiveView) -> dict[str, Any]:
    """Run a job and return its document.

    Raises:
        VerificationError: a reference could not be learned.
        WorkerError: a process of the load tester ended early.
    """
    references = await _learn(job.options, plan, view.learning) if job.options.verify else None
    view.begin(job.options, plan.num_sessions)
    outcome = await _send(job, plan, view.show)
    verification = None if references is None else verify(plan, outcome.records, references)
    return build_document(job.options, outcome, verification)


async def _learn(options: BenchOptions, plan: Plan, on_progress: Callable[[int, int], None]) -> References:
    sender = Sender(connection_of(options), options.endpoint)
    try:
        return await learn_references(plan, Load(plan, sender, options), on_progress)
    finally:
        await sender.close()


async def _send(job: Job, plan: Plan, on_snapshot: Callable[[Snapshot], None]) -> Outcome:
    if job.options.processes > 1:
        return await run_processes(job, on_snapshot)
    return await run_job(job, plan, on_snapshot)
