"""`reft bench`: from the options to the tables, the files and the exit code."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from ..cli.terminal import Terminal
from ..errors import error_from_transport
from .arguments import options_from
from .document import build_document
from .live import LiveView
from .load import Load
from .options import BenchOptions
from .plan import Plan
from .processes import run_processes
from .sender import Sender
from .tables import print_result
from .verification import References, learn_references, verify
from .vocabulary import ServerTokenizer, Vocabulary, calibrate
from .worker import Job, Outcome, Snapshot, connection_of, plan_of, run_job

__all__ = ["measure", "prepare", "run_bench"]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def run_bench(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run what the arguments describe.

    Returns:
        0; 1 = nothing was answered, or the verification failed; 130 = interrupted (what was over is reported).
    """
    job, plan = prepare(options_from(args), terminal)
    with LiveView(terminal.stderr, job.options, plan.num_sessions, is_quiet=args.quiet) as view:
        document = asyncio.run(measure(job, plan, view))
    for path in args.save:
        save(document, path)
    if args.json:
        left_out = ("requests", "cdfs", "series")
        shown = {name: value for name, value in document.items() if name not in left_out}
        terminal.line(json.dumps(shown, indent=2))
    else:
        print_result(document, terminal)
    return exit_code(document)


def exit_code(document: dict[str, Any]) -> int:
    """What the process ends with."""
    verification, summary = document["verification"], document["summary"]
    if verification is not None and verification["num_mismatches"]:
        return EXIT_FAILED
    if document["is_interrupted"]:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if summary["num_failed"] == summary["num_requests"] else 0


def prepare(options: BenchOptions, terminal: Terminal) -> tuple[Job, Plan]:
    """Ask the server for its model's name and its tokenizer, and make the plan.

    Raises:
        InvalidArgumentError: the options name files or mixes that can't be.
    """
    if options.model is None:
        options = options.model_copy(update={"model": _first_model(options)})
    vocabulary = Vocabulary()
    needs_texts = options.prompts is None and options.token_ids is None
    if needs_texts:
        with ServerTokenizer(connection_of(options), options.endpoint, options.model) as tokenizer:
            vocabulary = calibrate(tokenizer.count)
        if not vocabulary.is_exact:
            terminal.note(
                "the server doesn't tell how it tokenizes: prompts are of about the length asked for; the figures "
                "are what the server counted (--token-ids LOW:HIGH makes prompts exact)"
            )
    job = Job(options=options, vocabulary=vocabulary)
    return job, plan_of(job)


async def measure(job: Job, plan: Plan, view: LiveView) -> dict[str, Any]:
    """Learn the references if they are wanted, send the load, and build the document.

    Raises:
        VerificationError, WorkerError: as their names say.
    """
    references = await _learn(job.options, plan, view.learning) if job.options.verify else None
    view.begin()
    outcome = await _send(job, plan, view.show)
    verification = None if references is None else verify(plan, outcome.records, references)
    return build_document(job.options, outcome, verification)


async def _learn(options: BenchOptions, plan: Plan, on_progress: Callable[[int, int], None]) -> References:
    sender = Sender(connection_of(options), options.endpoint, started_s=time.perf_counter())
    try:
        return await learn_references(plan, Load(plan, sender, options), on_progress)
    finally:
        await sender.close()


async def _send(job: Job, plan: Plan, on_snapshot: Callable[[Snapshot], None]) -> Outcome:
    if job.options.processes > 1:
        return await run_processes(job, on_snapshot)
    return await run_job(job, plan, time.perf_counter(), on_snapshot)


def save(document: dict[str, Any], path: Path) -> None:
    """Write a document as its name's suffix says.

    Raises:
        OSError: it can't be written.
    """
    if path.suffix == ".json":
        path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    else:
        columns = document["requests"]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _first_model(options: BenchOptions) -> str | None:
    """The first model that the server lists; None = it lists none.

    Raises:
        APIConnectionError: it can't be reached.
    """
    connection = connection_of(options)
    with httpx.Client(headers=connection.headers, trust_env=connection.trust_env, timeout=connection.timeout) as client:
        try:
            response = client.get(f"{connection.base_url}/v1/models")
            return str(response.json()["data"][0]["id"]) if response.status_code == 200 else None
        except httpx.RequestError as error:
            raise error_from_transport(error, connection.base_url) from error
        except (ValueError, KeyError, IndexError, TypeError):
            return None
