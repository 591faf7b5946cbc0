"""`reft bench`: from the options to the tables, the files and the exit code."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict
from typing import Any

import httpx

from ..cli.terminal import Terminal
from ..errors import error_from_transport
from .arguments import options_from
from .compare import compare, comparison_table
from .document import read_document, save
from .live import LiveView
from .measurement import measure
from .options import BenchOptions
from .plan import Plan
from .sweep import sweep
from .tables import print_result
from .vocabulary import ServerTokenizer, Vocabulary, calibrate
from .worker import Job, connection_of, plan_of

__all__ = ["prepare", "run_bench", "run_compare"]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def run_bench(args: argparse.Namespace, terminal: Terminal) -> int:
    """Run what the arguments describe.

    Returns:
        0; 1 = nothing was answered, no rate met the objectives, or an answer that was to be verified is wrong or
        missing; 130 = interrupted (what was over is reported).
    """
    job, plan = prepare(options_from(args), terminal)
    with LiveView(terminal.stderr, is_quiet=args.quiet) as view:
        document = asyncio.run(measure(job, plan, view) if job.options.sweep is None else sweep(job, view))
    for path in args.save:
        save(document, path)
    if args.json:
        left_out = ("requests", "cdfs", "series")
        shown = {name: value for name, value in document.items() if name not in left_out}
        terminal.line(json.dumps(shown, indent=2))
    else:
        print_result(document, terminal)
    return exit_code(document)


def run_compare(args: argparse.Namespace, terminal: Terminal) -> int:
    """Compare two saved results; 0."""
    ratios = compare(read_document(args.first), read_document(args.second))
    if args.json:
        terminal.line(json.dumps([asdict(ratio) for ratio in ratios], indent=2))
    else:
        table = comparison_table(ratios)
        terminal.table(table.header, table.rows)
    return 0


def exit_code(document: dict[str, Any]) -> int:
    """What the process ends with."""
    verification, summary = document["verification"], document["summary"]
    if verification is not None and (verification["num_mismatches"] or summary["num_failed"]):
        return EXIT_FAILED
    if document["is_interrupted"]:
        return EXIT_INTERRUPTED
    if document["sweep"] is not None and document["sweep"]["best_rate"] is None:
        return EXIT_FAILED
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
