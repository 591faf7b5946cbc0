"""The order of what a copy to a GPU asks of the device, written down by stand-ins for torch's streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reft_server.engine.copy_stream import BlockingCopies, SideStream, copy_stream


class Stream:
    """Notes events and waits."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def record_event(self) -> str:
        self._log.append(f"{self.name}: record")
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self._log.append(f"{self.name}: wait for {event}")


class Operations(TorchDispatchMode):
    """Notes what torch runs, and on which stream."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log, self.current = log, "engine"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        is_async = " without waiting" if func.name() == "aten::copy_" and args[2] else ""
        self.log.append(f"{self.current}: {func.name().removeprefix('aten::').partition('.')[0]}{is_async}")
        return func(*args, **kwargs)


def test_engine_waits_on_the_device_and_freed_memory_waits_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    operations = Operations(log)

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        operations.current, before = stream.name, operations.current
        yield
        operations.current = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: Stream("engine", log))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: log.append(f"memory: used by {stream.name}"))
    source = torch.arange(5.0)
    with operations:
        copied = SideStream(torch.device("cpu")).copy(source)
    assert log == [
        "side: empty",
        "side: copy_ without waiting",
        "side: record",
        "engine: wait for event of side",
        "memory: used by engine",
    ]
    assert torch.equal(copied, source)


def test_devices_without_streams_copy_at_once() -> None:
    stream = copy_stream(torch.device("meta"))
    assert isinstance(stream, BlockingCopies)
    assert not stream.is_pinned
    assert stream.copy(torch.ones(3)).device.type == "meta"
