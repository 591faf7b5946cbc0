"""How graphs are recorded, against what torch's allocator demands; without a GPU, with the demand written down."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reft_server.engine.cuda.graph_capture import CudaCapture


class Streams:
    """`torch.cuda` as far as recording goes: which stream runs, and who uses which pool of memory.

    As `create_or_incref_pool` in torch's CUDACachingAllocator.cpp: a pool that was used needs a user to be used again.
    """

    def __init__(self) -> None:
        self.current = self.main = Stream(None)
        self.num_users: Counter[object] = Counter()
        self.known: set[object] = set()

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        previous, self.current = self.current, stream
        yield
        self.current = previous

    @contextlib.contextmanager
    def graph(self, graph: Graph, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # other threads copy meanwhile
        if pool in self.known and not self.num_users[pool]:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.known.add(pool)
        self.num_users[pool] += 1
        weakref.finalize(graph, self.num_users.subtract, [pool])
        with self.stream(stream):
            yield


class Stream:
    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Graph:
    def replay(self) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Streams:
    streams = Streams()
    replaced: dict[str, Any] = {
        "graph_pool_handle": object,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": lambda: streams.current,
        "stream": streams.stream,
        "graph": streams.graph,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return streams


def test_a_pool_outlives_its_graphs(cuda: Streams) -> None:
    """The graphs of the start-up check are gone when the engine records its first."""
    capture = CudaCapture(torch.device("cuda", 0))
    replay, _ = capture(lambda: torch.ones(1))
    del replay
    capture(lambda: torch.ones(1))


def test_a_function_warms_up_on_the_stream_that_records_it(cuda: Streams) -> None:
    seen: list[Stream] = []
    _, out = CudaCapture(torch.device("cuda", 0))(lambda: seen.append(cuda.current) or len(seen))
    assert out == 2
    assert seen[0] is seen[1] is not cuda.main
    assert cuda.main in seen[0].waited_for
