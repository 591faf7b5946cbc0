"""`reft bench` as a user runs it, against a server in another thread."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stream_server import StreamServer, words_of
from reft_client.cli import main

SHORT = ("--prompt-tokens", "4", "--max-tokens", "3")
Bench = Callable[..., tuple[int, str, str]]


@contextmanager
def serving(server: StreamServer) -> Iterator[str]:
    """Serve from a thread of its own; gives the URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        yield server.url
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run `reft bench ...` against a server: exit code, standard output, standard error."""

    def run(server: StreamServer, *argv: str) -> tuple[int, str, str]:
        with serving(server) as url:
            code = main(("bench", "--url", url, *argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def value_of(out: str, figure: str) -> str:
    """A cell of the table of figures."""
    return next(line.split("\t")[1] for line in out.splitlines() if line.startswith(f"{figure}\t"))


def test_bench_prints_what_it_measured(bench: Bench) -> None:
    names = ("--interventions", "a,b", "--mix", "distinct", "--tenants", "1")
    code, out, err = bench(StreamServer(), "--concurrency", "2", "--requests", "8", *SHORT, *names)
    assert code == 0
    assert value_of(out, "requests").startswith("8 in ")
    assert (value_of(out, "output tokens"), value_of(out, "failed")) == ("24", "0")
    assert value_of(out, "input tokens") == "32, 0 from the cache"
    assert [value_of(out, name) for name in ("a", "b", "tenant-0")] == ["4", "4", "8"]
    assert all(f"\n{name}\t" in out for name in ("TTFT", "ITL", "TPOT", "E2E", "queue"))
    assert "load tester: " in err
    assert "doesn't tell how it tokenizes" not in err


def test_bench_saves_every_format(bench: Bench, tmp_path: Path) -> None:
    paths = {suffix: tmp_path / f"run{suffix}" for suffix in (".json", ".csv", ".html")}
    saves = [word for path in paths.values() for word in ("--save", str(path))]
    server = StreamServer(answer=lambda _: [" <b>"])
    code, out, _ = bench(server, "--rate", "50:200", "--duration", "100ms", "--arrivals", "constant", *SHORT, *saves)
    document = json.loads(paths[".json"].read_text())
    rows = list(csv.DictReader(paths[".csv"].read_text().splitlines()))
    assert code == 0
    assert len(rows) == document["summary"]["num_requests"] == len(document["requests"]["index"]) > 5
    assert [float(row["ttft_s"]) for row in rows] == document["requests"]["ttft_s"]
    assert set(document["cdfs"]) == {"ttft_s", "e2e_s"}
    page = paths[".html"].read_text()
    assert page.count("<svg") == 3 + len(document["cdfs"]) + 1
    assert "<script" not in page
    assert value_of(out, "requests/s") == f"{document['summary']['requests_per_s']:.3g}"


def test_bench_json_is_the_summary(bench: Bench) -> None:
    _, out, _ = bench(StreamServer(), "--concurrency", "1", "--requests", "2", "--json", *SHORT)
    document = json.loads(out)
    assert document["options"]["model"] == "words"
    assert document["summary"]["output_tokens"] == 6
    assert "requests" not in document


def test_bench_verify_names_both_texts_and_fails(bench: Bench) -> None:
    def answer(_: dict[str, Any]) -> list[str]:
        return [f" {len(server.bodies)}", "\x1b[2J"] if len(server.bodies) > 9 else [" x"]

    server = StreamServer(answer=answer)
    run = ("--concurrency", "1", "--requests", "12", "--distinct-prompts", "2", "--verify", *SHORT)
    code, out, _ = bench(server, *run)
    assert code == 1
    assert "verified: 12 answers against 2 references, 5 mismatches" in out
    assert "alone:      ' x'" in out
    assert "under load: ' 10\\x1b[2J'" in out
    assert bench(StreamServer(), *run)[0] == 0


def test_bench_where_nothing_is_answered_fails(bench: Bench) -> None:
    refused = (503, {"error": {"message": "loading", "code": "engine_unavailable"}})
    code, out, _ = bench(StreamServer(refuse=lambda _: refused), "--concurrency", "1", "--requests", "3", *SHORT)
    assert code == 1
    assert "http_503_engine_unavailable\t3\tloading\n" in out


def test_bench_without_a_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("bench", "--url", "http://127.0.0.1:1", "--concurrency", "1", "--requests", "1")) == 1
    assert "can't reach http://127.0.0.1:1" in capsys.readouterr().err


def test_bench_says_when_lengths_are_approximate(bench: Bench) -> None:
    server = StreamServer(num_extra_tokens=None, reports_usage=False)
    _, out, err = bench(server, "--concurrency", "1", "--requests", "2", "--via", "model", *SHORT)
    assert "doesn't tell how it tokenizes" in err
    assert value_of(out, "output tokens") == "about 6"
    assert value_of(out, "input tokens") == "the server does not say"


def test_bench_chat_prompts_are_exact(bench: Bench) -> None:
    """The server's template takes 9 tokens: the words make up for them."""
    server = StreamServer(num_extra_tokens=9)
    run = ("--concurrency", "1", "--requests", "3", "--max-tokens", "2", "--prompt-tokens", "20")
    bench(server, "--endpoint", "chat", *run)
    assert {len(body["messages"][0]["content"].split()) for body in server.bodies} == {11}


def test_bench_sweep_finds_the_highest_rate(bench: Bench, tmp_path: Path) -> None:
    """Steps of 8 requests at 100, 200, 400 and then between 200 and 400; the server refuses the third and the fifth."""
    numbers = itertools.count()

    def refuse(_: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        return (503, {"error": {"message": "full"}}) if next(numbers) // 8 in (2, 4) else None

    saved, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    code, out, _ = bench(
        *(StreamServer(refuse=refuse), "--sweep", "100:1600", "--requests", "8", "--slo", "ttft:60s", *SHORT),
        *("--save", str(saved), "--save", str(page)),
    )
    sweep = json.loads(saved.read_text())["sweep"]
    assert code == 0
    assert [round(point["rate"]) for point in sweep["points"]] == [100, 200, 400, 283, 336, 308]
    assert [point["is_met"] for point in sweep["points"]] == [True, True, False, True, False, True]
    assert sweep["best_rate"] == sweep["points"][-1]["rate"]
    assert "highest rate that met the objectives: 308 requests/s" in out
    assert page.read_text().count("against rate</text>") == 3


def test_bench_sweep_that_finds_no_limit_says_so(bench: Bench) -> None:
    run = ("--sweep", "400:800", "--requests", "2", "--slo", "ttft:60s", *SHORT)
    code, out, _ = bench(StreamServer(), *run)
    assert code == 0
    assert "every rate up to 800 requests/s met the objectives: sweep to a higher one" in out


def test_bench_sweep_that_never_meets_its_objectives_fails(bench: Bench) -> None:
    run = ("--sweep", "400:800", "--requests", "2", "--slo", "e2e:1us", *SHORT)
    code, out, _ = bench(StreamServer(), *run)
    assert code == 1
    assert "no rate met the objectives" in out


def test_bench_compare_shows_ratios(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for interval_s, path in ((0.002, first), (0.02, second)):
        server = StreamServer(interval_s=interval_s, answer=words_of)
        bench(server, "--concurrency", "2", "--requests", "20", "--save", str(path), *SHORT)
    assert main(("bench", "compare", str(first), str(second))) == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(rows["TPOT p50"][2]) > 3
    assert main(("bench", "compare", str(first), str(second), "--json")) == 0
    by_name = {item["figure"]: item for item in json.loads(capsys.readouterr().out)}
    assert by_name["TPOT p50"]["low"] <= by_name["TPOT p50"]["ratio"] <= by_name["TPOT p50"]["high"]
    assert by_name["requests/s"]["ratio"] < 1


def test_bench_compare_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"format": "something"}')
    assert main(("bench", "compare", str(path), str(path))) == 2
    assert "no result of `reft bench" in capsys.readouterr().err
    assert main(("bench", "compare", str(tmp_path / "none.json"), str(path))) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--concurrency", "1", "--requests", "1", "--save", "run.txt"), ".json, .csv or .html"),
        (("--concurrency", "1", "--requests", "1", "--save", "nowhere/run.csv"), "no folder"),
        (("--concurrency", "1", "--requests", "1", "--slo", "speed:1"), "ttft"),
        (("--concurrency", "1", "--requests", "1", "--mix", "zipf:1"), "--interventions"),
        (("--concurrency", "1", "--requests", "1", "--extra-body", "[]"), "JSON object"),
        (("--concurrency", "1", "--requests", "1", "--trace", "nowhere.jsonl"), "one of"),
        (("--sweep", "1:2", "--requests", "1"), "--slo"),
        (("--sweep", "2:1", "--requests", "1", "--slo", "ttft:1s"), "upwards"),
        (("--requests", "1"), "one of"),
    ],
)
def test_bench_wrong_usage_exits_with_2(
    argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(("bench", "--url", "http://127.0.0.1:1", "--model", "m", "--token-ids", "1:9", *argv))
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err
