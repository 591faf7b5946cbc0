"""The sections in order, each within its share of the time; what was found is on disk after each of them."""

from __future__ import annotations

import faulthandler
import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.figures import write_result
from benchmarks.gpu.plan import Plan
from benchmarks.machine import describe

TOTAL_S = 460
_AGAIN_S = 5
_HANGS_AFTER_S = 30
UNFINISHED = "gpu-unfinished.json"
Section = Callable[[dict[str, Any]], None]
"""Fills a dictionary, so that what came before a failure is kept."""


class SectionCut(BaseException):
    """A section's time is over. No `Exception`: nothing on the way may take it for an error of its own."""


def run(plan: Plan, folder: Path | None = None, only: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Every section of one plan, or some of them. What follows an inexact path is kept apart, see `finish`.

    Args:
        folder: where the result is kept after each section, under `UNFINISHED`; None = nowhere.
    """
    from benchmarks.gpu import checks  # after TRITON_INTERPRET is set: these import the kernels
    from benchmarks.gpu.activation import activation
    from benchmarks.gpu.attention import attention_kernels
    from benchmarks.gpu.baselines import Baselines
    from benchmarks.gpu.edits import edit_kernels
    from benchmarks.gpu.products import products
    from benchmarks.gpu.serving import Serving

    recorder = _Recorder(plan, folder, only)
    recorder.run("ceilings", 20, partial(checks.ceilings, plan))
    recorder.run("exactness", 120, partial(checks.exactness, plan))
    serving: list[Serving] = []

    def load(found: dict[str, Any]) -> None:
        serving.append(Serving(plan, recorder.result["ceilings"]))
        found["kernels"] = serving[0].kernels

    if not recorder.run("load", 150, load):
        return recorder.result
    [served] = serving
    baselines = Baselines(plan, served)

    def decode_cublas(found: dict[str, Any]) -> None:
        few = replace(plan, batch_sizes=plan.batch_sizes[:2], contexts=plan.contexts[:1], num_concurrent=1)
        few = replace(few, num_prefill_tokens=1, kv_bytes=plan.kv_bytes // 8)
        choice = "torch" if plan.is_on_gpu else "triton"  # in the interpreter nothing else runs our own in a step
        Serving(few, recorder.result["ceilings"], products=choice).decode(found)

    sections: dict[str, tuple[float, Section]] = {
        "decode": (90, served.decode),
        "prefill": (30, served.prefill),
        "edit_kernels": (30, partial(edit_kernels, plan)),
        "activation": (30, partial(activation, plan, served.engine)),
        "throughput": (150, served.throughput),
        "shared_prefix": (30, served.shared_prefix),
        "attention_kernels": (30, partial(attention_kernels, plan)),
        "products": (30, partial(products, plan)),
        "decode_cublas": (45, decode_cublas),
        "generate": (60, baselines.eager),
        "generate_compiled": (120, baselines.compiled),
    }
    for name, (budget_s, section) in sections.items():
        if not only or name in only:
            recorder.run(name, budget_s, section)
    served.stop()
    return recorder.result


class _Recorder:
    """Runs sections one by one, and keeps what they find."""

    def __init__(self, plan: Plan, folder: Path | None, only: frozenset[str] = frozenset()) -> None:
        self._plan = plan
        self._folder = folder
        self._started = time.perf_counter()
        self.result: dict[str, Any] = {"machine": describe(), "device": _device_name(plan), "seconds": {}}
        if only:
            self.result["only_sections"] = sorted(only)

    def run(self, name: str, budget_s: float, section: Section) -> bool:
        """Whether the section came to its end; what it found is in the result in any case."""
        found: dict[str, Any] = {}
        self.result[name] = found
        started = time.perf_counter()
        budget_s = min(budget_s, TOTAL_S - (started - self._started))
        try:
            with _cut_after(budget_s):
                section(found)
        except SectionCut:
            found["cut_after_s"] = round(budget_s, 1)
        except Exception as error:  # noqa: BLE001 - a section that fails must not cost the others their time on the GPU
            traceback.print_exc()
            found["failed"] = f"{type(error).__name__}: {error}"
        self.result["seconds"][name] = round(time.perf_counter() - started, 1)
        if self._plan.is_on_gpu:
            self.result["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            gc.collect()
            torch.cuda.empty_cache()  # what the section had is there for the next one
        print(f"[{time.perf_counter() - self._started:5.0f} s] {name} {json.dumps(found)}", flush=True)
        self._keep()
        return not found.keys() & {"failed", "cut_after_s"}

    def _keep(self) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / UNFINISHED
            new = path.with_suffix(".new")
            new.write_text(json.dumps(self.result), encoding="utf-8")
            new.replace(path)


def finish(folder: Path) -> None:
    """Append what a run has found to `gpu.jsonl`, also of one that was ended from outside.

    Figures of a path that is not exact go to `gpu-inexact.jsonl`: they say where to look, and nobody quotes them. Some
    sections by themselves go to `gpu-partial.jsonl`, or they would stand where all figures are read.
    """
    path = folder / UNFINISHED
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        name = "gpu-partial" if "only_sections" in result else "gpu"
        write_result(name if is_exact(result) else "gpu-inexact", result, folder)
        path.unlink()


def is_exact(result: Mapping[str, Any]) -> bool:
    """Whether the checks before the figures came to their end."""
    return not result.get("exactness", {"failed": "not reached"}).keys() & {"failed", "cut_after_s"}


@contextmanager
def _cut_after(seconds: float) -> Iterator[None]:
    """Raise `SectionCut` in the main thread once the time is over, and again where an event loop has swallowed it.

    Python's handlers don't run while the main thread waits for the device. Where that takes too long, the process shows
    where its threads are, and ends: what was found is on disk, and `--only` takes the other sections.
    """

    def cut(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
        raise SectionCut

    if seconds <= 0:
        raise SectionCut
    before = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    faulthandler.dump_traceback_later(seconds + _HANGS_AFTER_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _device_name(plan: Plan) -> str:
    return torch.cuda.get_device_name(plan.device) if plan.is_on_gpu else "cpu, Triton interpreted"
