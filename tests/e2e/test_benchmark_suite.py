"""The benchmark suite runs as `make bench` runs it, on a tiny model, and keeps what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import DEFAULT, main
from benchmarks.figures import read_result
from benchmarks.peers import environments
from tests.conftest import TinyModel
from tests.fakes.tokenizers import byte_level_tokenizer

KEPT = ("peers-hf", "peers-peft", "swap", "pool", "prefix", "distinct")


@pytest.fixture(scope="session")
def model_folder(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the Llama shape as a folder that servers and peers load."""
    folder = tmp_path_factory.mktemp("benchmark") / "tiny"
    tokenizer = byte_level_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)  # a dozen processes start one after the other
def test_suite_runs_every_default_part(model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--model", str(model_folder), "--results", str(tmp_path)])
    summary = capfd.readouterr().out.split("summary", 1)[1]
    assert len(DEFAULT) == len(KEPT)
    for name in KEPT:
        result = read_result(name, tmp_path)
        assert result["machine"]["commit"]
        assert result["job"]["model"] == "tiny"
    for title in ("Throughput beside others", "Distinct adapters", "Shared prefixes", "Swapping", "Many stored sets"):
        assert title in summary


def test_suite_leaves_out_a_peer_whose_environment_is_missing(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    main(["--quick", "--model", str(model_folder), "--only", "pyreft"])
    assert "left out: .venv-pyreft/bin/python is missing: run `make bench-peers PEERS=pyreft`" in " ".join(
        capsys.readouterr().out.split()
    )
