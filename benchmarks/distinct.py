"""What do interventions cost, over the number of distinct ones in a batch, and what do LoRAs cost elsewhere?

Question: output tokens/s with K distinct adapters mixed, over that of the base model in the same round.
Baseline: the same number of requests on the bare base, on the same server. Every job has random prompts of its own, so
that nothing is reused; the order of the jobs turns round with every round. `ours`: LoReFT sets. `peft`: LoRAs (r 8 on q
and v, PEFT's defaults) in a static batch of HF `generate` whose rows name theirs. `vllm`: the same LoRAs on vLLM's CPU
build, base requests on the same server with LoRA switched on.
Ceiling: 1.0, the base's own throughput.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.adapter_files import upload_random_sets, write_random_loras
from benchmarks.figures import ratios
from benchmarks.machine import median
from benchmarks.options import Options, make_options, make_parser
from benchmarks.peers.contenders import Setting, start_vllm_server
from benchmarks.peers.environments import MissingPeerError
from benchmarks.peers.runners import Runner, ServerRunner, WorkerRunner
from benchmarks.server_process import start_server
from benchmarks.streaming import random_prompts

PREFIXES = {"f3+l3": "prompt", "all": "all", "lora": "lora"}
"""What kind of adapter, and how the names of those of this kind begin."""
BASE = ("base", 0)
DEFAULT_ROUNDS = 3


@dataclass(frozen=True)
class Series:
    """Jobs of equal size: the base, and kinds of adapters with a number of distinct ones."""

    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int
    numbers: tuple[int, ...]


SERIES = (
    Series(64, 64, 32, (1, 8, 64)),
    # So many sequences at once fit into memory and time only when they are short; more of their tokens are edited.
    Series(512, 32, 16, (512,)),
)
QUICK_SERIES = (Series(4, 8, 4, (1, 4)),)
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"ours": ("f3+l3", "all"), "peft": ("lora",), "vllm": ("lora",)}
)


def start_ours(setting: Setting) -> Runner:
    """Our server with as many sets of each kind as some job mixes; those for 512 requests edit prompts only."""
    options, folder = setting.options, setting.folder
    flags = ("--engine-max-num-seqs", "512", "--engine-max-queue-len", "512", "--log-level", "warning")
    server = start_server(folder / "store", *options.server_flags, *flags)
    runner = ServerRunner(server, str(options.machine["reft-serve"]))
    setting.add(runner)
    server.wait_until_ready()
    for positions in KINDS["ours"]:
        names = asyncio.run(
            upload_random_sets(
                server.url,
                folder,
                setting.num_sets,
                positions=positions,
                prefix=PREFIXES[positions],
                model=options.model,
            )
        )
        print(f"uploaded {len(names)} sets, {positions}", flush=True)
    return runner


def start_peft(setting: Setting) -> Runner:
    folder = setting.folder / "loras"
    write_random_loras(folder, setting.num_sets, setting.options.model)
    runner = WorkerRunner("benchmarks.peers.hf_worker", str(setting.options.model.path), str(folder))
    setting.add(runner)
    return runner


def start_vllm(setting: Setting) -> Runner:
    folder = setting.folder / "loras"
    write_random_loras(folder, setting.num_sets, setting.options.model)
    return start_vllm_server(setting, "vllm-lora", folder, max_num_seqs=512)


RUNNERS: Mapping[str, Callable[[Setting], Runner]] = MappingProxyType(
    {"ours": start_ours, "peft": start_peft, "vllm": start_vllm}
)


def measure(runner: Runner, options: Options, series: Series, kinds: tuple[str, ...], num_sets: int) -> dict[str, Any]:
    """Paired rounds of one series, with at most so many distinct adapters."""
    mixes = [(kind, number) for kind in kinds for number in series.numbers if number <= num_sets]
    jobs = (BASE, *mixes)
    seconds: dict[tuple[str, int], list[float]] = {job: [] for job in jobs}
    num_output = series.num_requests * series.num_new_tokens
    for index in range(options.num_rounds(DEFAULT_ROUNDS) + 1):
        is_warm_up = index == 0
        with options.hold_machine(is_exclusive=True):
            options.check_quiet()
            for turn, job in enumerate(jobs[:1] if is_warm_up else jobs[:: 1 if index % 2 else -1]):
                taken = job_s(runner, options, series, *job, seed=1000 * index + turn)
                print(f"  round {index}, {job[0]} K={job[1]}: {num_output / taken:.1f} tok/s", flush=True)
                if not is_warm_up:
                    seconds[job].append(taken)
    return {
        "num_requests": series.num_requests,
        "num_prompt_tokens": series.num_prompt_tokens,
        "num_new_tokens": series.num_new_tokens,
        "base_tokens_per_s": round(median([num_output / taken for taken in seconds[BASE]]), 1),
        "over_base": [{"kind": job[0], "num_distinct": job[1], **ratios(seconds[BASE], seconds[job])} for job in mixes],
    }


def job_s(runner: Runner, options: Options, series: Series, kind: str, num_distinct: int, seed: int) -> float:
    """Seconds of all requests at once, the n-th under the n-th of the adapters."""
    prompts = random_prompts(seed, series.num_requests, series.num_prompt_tokens, options.model.token_ids)
    adapters = [f"{PREFIXES[kind]}-{index % num_distinct}" if num_distinct else None for index in range(len(prompts))]
    return runner.run_s(prompts, series.num_new_tokens, adapters)


def run(options: Options, server: str = "ours", max_distinct: int = 512) -> dict[str, Any]:
    """Measure one server and keep its figures; the result.

    Raises:
        MissingPeerError: the peer's environment has not been built.
    """
    series = QUICK_SERIES if options.is_quick else SERIES
    num_sets = min(max_distinct, max(number for one in series for number in one.numbers))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        setting = Setting(options, Path(folder), stack, num_sets)
        with options.hold_machine(is_exclusive=False):
            runner = RUNNERS[server](setting)
        measured = [
            measure(runner, options, one, KINDS[server], num_sets) for one in series if one.numbers[0] <= num_sets
        ]
    job = {
        "server": server,
        "version": runner.version,
        "sets": "LoReFT r4, five layers",
        "loras": "r8, q and v of every layer",
        "rounds": options.num_rounds(DEFAULT_ROUNDS),
    }
    return options.keep("distinct" if server == "ours" else f"distinct-{server}", job, {"series": measured})


def main() -> None:
    """Run, print, and keep the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("server", nargs="?", choices=tuple(RUNNERS), default="ours")
    parser.add_argument("--max-distinct", type=int, default=512, help="leave out jobs with more adapters (512)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    try:
        run(make_options(args), args.server, args.max_distinct)
    except MissingPeerError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
