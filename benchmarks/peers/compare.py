"""One comparison: contenders take turns, and ratios are taken within a round."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import ratios, spread
from benchmarks.machine import ceilings, job_ceiling
from benchmarks.options import Options
from benchmarks.peers.contenders import COMPARISONS, Contender, Setting, start_ours
from benchmarks.streaming import random_prompts

BASE, MIXED = "ours_base", "ours_mixed"
DEFAULT_ROUNDS = 3
HELD_S = 120
"""After which no further round starts before others could have the machine."""


@dataclass(frozen=True)
class Job:
    """Requests of one length, sent at once."""

    batches: tuple[int, ...]
    num_prompt_tokens: int
    num_new_tokens: int
    num_sets: int


FULL = Job(batches=(1, 8, 32), num_prompt_tokens=128, num_new_tokens=64, num_sets=8)
QUICK = Job(batches=(1, 4), num_prompt_tokens=16, num_new_tokens=4, num_sets=2)


def compare(peer: str, options: Options) -> dict[str, Any]:
    """Run one comparison and keep its figures; the result.

    Raises:
        MissingPeerError: the peer's environment has not been built.
    """
    job = QUICK if options.is_quick else FULL
    rounds = options.num_rounds(DEFAULT_ROUNDS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with options.hold_machine(is_exclusive=False):
            setting = Setting(options, Path(folder), stack, job.num_sets)
            contenders = COMPARISONS[peer](setting)
            ours, names = start_ours(setting, "ours")
        contenders += [Contender(BASE, ours), Contender(MIXED, ours, names)]
        with Turns(options, contenders) as turns:
            peak = ceilings(is_quick=options.is_quick)
            print(f"ceiling: {peak}", flush=True)
            series = [_measure(turns, contenders, options, job, batch, rounds, peak) for batch in job.batches]
    description = {
        "num_prompt_tokens": job.num_prompt_tokens,
        "num_new_tokens": job.num_new_tokens,
        "num_sets": job.num_sets,
        "sets": "LoReFT r4, f3+l3, five layers",
        "loras": "r8, q and v of every layer",
        "stream": True,
        "rounds": rounds,
    }
    versions = {contender.name: contender.runner.version for contender in contenders}
    figures = {"ceilings": peak, "versions": versions, "batches": series}
    return options.keep(f"peers-{peer}", description, figures)


class Turns:
    """The machine, held alone, with every contender stopped; between rounds others may have it."""

    def __init__(self, options: Options, contenders: list[Contender]) -> None:
        self._options, self._runners = options, {contender.runner for contender in contenders}
        self._held = ExitStack()
        self._since_s = 0.0

    def __enter__(self) -> Turns:
        self._held.enter_context(self._options.hold_machine(is_exclusive=True))
        for runner in self._runners:
            runner.pause()
        self._options.check_quiet()
        self._since_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners:  # a server that stands still for minutes gives up
            runner.resume()
        self._held.close()

    def share(self) -> None:
        """Let others have the machine in between, after a while."""
        if time.monotonic() - self._since_s > HELD_S:
            self.__exit__()
            self.__enter__()


def _measure(
    turns: Turns,
    contenders: list[Contender],
    options: Options,
    job: Job,
    batch: int,
    rounds: int,
    peak: dict[str, float],
) -> dict[str, Any]:
    """Paired rounds of one batch size, after a short one that warms up."""
    model = options.model
    num_weights = (model.num_block_weights, model.num_head_weights)
    ceiling = job_ceiling(peak, batch, job.num_prompt_tokens, job.num_new_tokens, num_weights)
    print(f"{batch} at once: at most {ceiling:.0f} output tok/s in float32 on this machine", flush=True)
    done: list[dict[str, float]] = []
    _run_round(contenders, options, job, batch, 1000 * batch + 500, num_new_tokens=4)
    for number in range(1, rounds + 1):
        turns.share()
        done.append(_run_round(contenders, options, job, batch, 1000 * batch + number, job.num_new_tokens))
        line = "  ".join(f"{name} {rate:.1f}" for name, rate in done[-1].items())
        print(f"  round {number} of {rounds}, tok/s: {line}", flush=True)
    rates = {contender.name: [rates[contender.name] for rates in done] for contender in contenders}
    return {
        "num_requests": batch,
        "ceiling_tokens_per_s": round(ceiling, 1),
        "tokens_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "mixed_over": {name: ratios(rates[MIXED], values) for name, values in rates.items() if name != MIXED},
    }


def _run_round(
    contenders: list[Contender], options: Options, job: Job, batch: int, seed: int, num_new_tokens: int
) -> dict[str, float]:
    """One turn each; output tokens per second of the whole job by name."""
    rates = {}
    for turn, contender in enumerate(contenders):
        contender.runner.resume()
        contender.run_s(random_prompts(turn, 1, 8, options.model.token_ids), 2)  # awake again
        prompts = random_prompts(seed * len(contenders) + turn, batch, job.num_prompt_tokens, options.model.token_ids)
        rates[contender.name] = batch * num_new_tokens / contender.run_s(prompts, num_new_tokens)
        contender.runner.pause()
    return rates
