"""A request's outputs, from the engine's thread to whoever waits for them."""

from __future__ import annotations

import asyncio

import pytest

from reft_server.engine.stream import QueueStream, publish
from reft_server.engine.types import TokenOutput
from reft_server.errors import ReftError, RequestTimeoutError


async def read(stream: QueueStream, found: list[int | None]) -> None:
    async for outputs in stream:
        found += [output.token_id for output in outputs]


@pytest.mark.parametrize("num_waits", [0, 3], ids=["before anybody waits", "while somebody waits"])
def test_a_stream_that_fails_gives_what_has_come_and_is_given_up(num_waits: int) -> None:
    async def run() -> None:
        cancelled: list[bool] = []
        stream = QueueStream(asyncio.get_running_loop(), lambda: cancelled.append(True))
        found: list[int | None] = []
        reader = asyncio.create_task(read(stream, found))
        for _ in range(num_waits):
            await asyncio.sleep(0)
        publish([(stream, [TokenOutput(5), TokenOutput(6)])])
        stream.deliver([TokenOutput(7)])
        error: ReftError = RequestTimeoutError("too long")
        stream.fail(error)
        stream.deliver([TokenOutput(8, finish_reason="stop")])
        with pytest.raises(RequestTimeoutError, match="too long"):
            await reader
        assert found == [7]  # what another thread published arrives behind the end
        assert (cancelled, stream.is_cancelled) == ([True], True)

    asyncio.run(run())


def test_a_reader_that_leaves_and_one_that_comes_back_miss_nothing() -> None:
    async def run() -> None:
        stream = QueueStream(asyncio.get_running_loop(), lambda: None)
        steps = aiter(stream)
        for token_id in range(3):
            step = asyncio.ensure_future(anext(steps))
            await asyncio.sleep(0)
            stream.deliver([TokenOutput(token_id)])
            stream.deliver([TokenOutput(token_id + 10)])  # before the reader has run again
            assert [one.token_id for one in await step] == [token_id, token_id + 10]
        waiting = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0)
        waiting.cancel()
        stream.deliver([TokenOutput(9)])  # to nobody, and nothing breaks
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert stream.is_cancelled

    asyncio.run(run())
