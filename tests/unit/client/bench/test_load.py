"""Loads against a real server on this machine that answers with scripted words."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stream_server import StreamServer
from reft_client.bench.monitor import ClientHealth, client_report
from reft_client.bench.options import BenchOptions
from reft_client.bench.processes import run_processes
from reft_client.bench.records import RequestRecord
from reft_client.bench.vocabulary import Vocabulary
from reft_client.bench.worker import Job, Outcome, Snapshot, plan_of, run_job


async def send(server: StreamServer, **fields: Any) -> Outcome:
    """Run a load of short prompts against `server`."""
    async with server:
        lengths = {
            "prompt_tokens": {"kind": "fixed", "parameters": (4,)},
            "max_tokens": {"kind": "fixed", "parameters": (3,)},
        }
        options = BenchOptions.model_validate({"url": server.url, **lengths, **fields})
        job = Job(options=options, vocabulary=Vocabulary())
        if options.processes > 1:
            return await run_processes(job, lambda _: None)
        return await run_job(job, plan_of(job), lambda _: None)


def run(server: StreamServer, **fields: Any) -> Outcome:
    return asyncio.run(send(server, **fields))


def prompts(server: StreamServer) -> list[str]:
    return sorted(body["prompt"] for body in server.bodies)


def test_closed_loop_keeps_its_concurrency_and_sends_every_session_once() -> None:
    running, most = 0, 0

    class Counting(StreamServer):
        async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter, *, is_chat: bool) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await super()._stream(body, writer, is_chat=is_chat)
            running -= 1

    server = Counting(answer=lambda _: [" a", " b", " c"], interval_s=0.003)
    outcome = run(server, concurrency=4, num_requests=20, warmup_requests=2)
    assert most == 4
    assert sorted(record.index for record in outcome.records) == list(range(22))
    assert sorted(record.index for record in outcome.records if record.is_warmup) == [0, 1]
    for record in outcome.records:
        assert (record.error, record.text, record.completion_tokens) == (None, " a b c", 3)
        assert record.is_approximate is False
        assert record.prompt_tokens == 4
        assert record.queue_s == 0.003
        assert len(record.gaps_s) == 2
        assert record.first_s is not None
        assert record.intended_s <= record.sent_s <= record.first_s <= record.end_s
        assert min(record.gaps_s) > 0


def test_open_loop_sends_when_due_whether_or_not_the_server_answers() -> None:
    """The server answers nothing until every request is there: a closed loop would hang."""
    everybody = asyncio.Event()
    num_arrived = 0

    class Waiting(StreamServer):
        async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter, *, is_chat: bool) -> None:
            nonlocal num_arrived
            num_arrived += 1
            if num_arrived == 8:
                everybody.set()
            await everybody.wait()
            await super()._stream(body, writer, is_chat=is_chat)

    outcome = run(Waiting(), rate=(200, 200), arrivals="constant", num_requests=8)
    by_index = sorted(outcome.records, key=lambda record: record.index)
    assert [round(record.intended_s, 6) for record in by_index] == [index / 200 for index in range(8)]
    assert all(record.sent_s >= record.intended_s for record in by_index)


def test_open_loop_counts_latency_from_the_intended_time() -> None:
    """The load tester itself was late: the request's latency has the delay in it."""
    record = RequestRecord(0, intended_s=1.0, sent_s=3.0, first_s=3.5, end_s=4.0)
    assert (record.ttft_s, record.e2e_s) == (2.5, 3.0)
    report = client_report([ClientHealth(0.1, (0.0,))], [record])
    assert report["is_bottleneck"]
    assert report["send_delay_s"]["max"] == 2.0  # type: ignore[index]


def test_duration_bounds_what_is_sent() -> None:
    outcome = run(StreamServer(), rate=(128, 128), arrivals="constant", duration_s=0.125, warmup_s=0.0625)
    assert sorted(record.index for record in outcome.records) == list(range(24))
    assert sum(record.is_warmup for record in outcome.records) == 8
    closed = run(StreamServer(interval_s=0.01), concurrency=2, duration_s=0.1)
    assert 2 <= len(closed.records) <= 10
    assert all(record.intended_s < 0.1 for record in closed.records)


def test_turns_send_the_conversation_so_far() -> None:
    server = StreamServer(answer=lambda body: [f" answer {len(body['messages'])}"])
    turns = {"kind": "fixed", "parameters": (3,)}
    outcome = run(server, concurrency=1, num_requests=1, turns=turns, endpoint="chat")
    assert [record.turn for record in outcome.records] == [0, 1, 2]
    contents = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert contents[2] == [contents[0][0], " answer 1", contents[1][2], " answer 3", contents[2][4]]
    assert len({contents[2][0], contents[2][2], contents[2][4]}) == 3


def test_think_time_delays_the_next_turn() -> None:
    two, pause = {"kind": "fixed", "parameters": (2,)}, {"kind": "fixed", "parameters": (0.05,)}
    first, second = run(StreamServer(), concurrency=1, num_requests=1, turns=two, think_time=pause).records
    assert second.intended_s == pytest.approx(first.end_s + 0.05)
    assert second.sent_s >= second.intended_s


def test_failures_have_a_type_and_end_their_session() -> None:
    replies = iter(
        [
            (429, {"error": {"message": "full", "code": "engine_overloaded"}}),
            (500, {"detail": "oops"}),
            (400, {"error": {"message": "no", "type": "BadRequestError", "code": 400}}),
            None,
        ]
    )
    turns = {"kind": "fixed", "parameters": (2,)}
    outcome = run(StreamServer(refuse=lambda _: next(replies, None)), concurrency=1, num_requests=4, turns=turns)
    errors = [record.error for record in outcome.records]
    assert errors == ["http_429_engine_overloaded", "http_500", "http_400", None, None]
    assert outcome.records[0].error_message == "full"


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b'data: {"error": {"message": "gone", "code": "engine_unavailable"}}\n\n', "stream_engine_unavailable"),
        (b'data: {"choices": [{"text": " a"}]}\n\n', "truncated"),
        (b"data: {\n\n", "malformed"),
        (None, "connection"),
    ],
)
def test_broken_streams_are_failures(stream: bytes | None, error: str) -> None:
    class Broken(StreamServer):
        async def _stream(self, _: dict[str, Any], writer: asyncio.StreamWriter, **__: bool) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            if stream is None:
                writer.close()
            else:
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(stream), stream))

    assert [record.error for record in run(Broken(), concurrency=1, num_requests=1).records] == [error]


def test_no_server_is_a_failure_to_connect() -> None:
    async def measure() -> Outcome:
        server = StreamServer()
        async with server:
            url = server.url
        job = Job(options=BenchOptions(url=url, concurrency=1, num_requests=1), vocabulary=Vocabulary())
        return await run_job(job, plan_of(job), lambda _: None)

    assert [record.error for record in asyncio.run(measure()).records] == ["connect"]


def test_answers_without_usage_are_counted_and_marked() -> None:
    record = run(StreamServer(reports_usage=False), concurrency=1, num_requests=1).records[0]
    assert (record.completion_tokens, record.is_approximate, record.prompt_tokens) == (3, True, None)


def test_trace_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"at_s": 7.02, "prompt": "two"}\n{"at_s": 7, "prompt": "one"}\n{"at_s": 7.04, "prompt_tokens": 2}\n'
    )
    server = StreamServer()
    outcome = run(server, trace=path)
    assert [round(record.intended_s, 6) for record in outcome.records] == [0, 0.02, 0.04]
    assert [body["prompt"] for body in server.bodies][:2] == ["one", "two"]


@pytest.mark.parametrize("load", [{"concurrency": 3}, {"rate": (300, 300)}])
def test_processes_send_together_what_one_sends_alone(load: dict[str, Any]) -> None:
    alone, together = StreamServer(), StreamServer()
    fields = {**load, "num_requests": 12, "interventions": ("a", "b"), "mix": "uniform"}
    one, two = run(alone, **fields), run(together, **fields, processes=2)
    assert prompts(together) == prompts(alone)
    assert Counter(item.intervention for item in two.records) == Counter(item.intervention for item in one.records)
    assert len(two.healths) == 2
    texts = {record.index: (record.text, len(record.gaps_s)) for record in one.records}
    assert {record.index: (record.text, len(record.gaps_s)) for record in two.records} == texts


def test_cancelled_load_keeps_what_is_over() -> None:
    async def interrupt() -> tuple[Outcome, list[Snapshot]]:
        snapshots: list[Snapshot] = []
        async with StreamServer(interval_s=0.001) as server:
            job = Job(options=BenchOptions(url=server.url, concurrency=2, duration_s=60), vocabulary=Vocabulary())
            running = asyncio.create_task(run_job(job, plan_of(job), snapshots.append))
            while not snapshots or not snapshots[-1].num_finished:
                await asyncio.sleep(0.01)
            running.cancel()
            return await running, snapshots

    outcome, snapshots = asyncio.run(interrupt())
    assert outcome.is_interrupted
    assert len(outcome.records) >= snapshots[-1].num_finished > 0
    assert snapshots[-1].num_running <= 2
