"""What a terminal shows while a run is under way."""

from __future__ import annotations

import io

import pytest

from reft_client.bench.live import LiveView
from reft_client.bench.options import BenchOptions
from reft_client.bench.worker import Snapshot

OPTIONS = BenchOptions(url="http://x", concurrency=2, num_requests=10)


class Screen(io.StringIO):
    """A standard stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_live_view_shows_progress_and_figures() -> None:
    screen = Screen()
    with LiveView(screen, is_quiet=False) as view:
        view.learning(1, 2)
        view.begin(OPTIONS, 10)
        view.show(Snapshot(num_finished=4, num_failed=1, num_running=2, num_tokens=30, ttfts_s=(0.1, 0.2)))
    text = screen.getvalue()
    assert "40%" in text
    assert "TTFT p50" in text
    assert "150 ms" in text


@pytest.mark.parametrize(("stream", "is_quiet"), [(io.StringIO(), False), (Screen(), True)])
def test_live_view_is_silent_without_a_terminal_and_when_asked(stream: io.StringIO, is_quiet: bool) -> None:
    with LiveView(stream, is_quiet=is_quiet) as view:
        view.begin(OPTIONS, 10)
        view.show(Snapshot(num_finished=4))
    assert stream.getvalue() == ""
