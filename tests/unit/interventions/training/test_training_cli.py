"""`reft-train` from its command line to the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_interventions import base_model_spec, load, validate_for_base
from reft_interventions.errors import InterventionBaseMismatchError, TrainingError
from reft_interventions.training import RECIPES, TrainingOptions
from reft_interventions.training.base_model import load_model, locate_model
from reft_interventions.training.checkpoint import checkpoint_path
from reft_interventions.training.cli import main
from reft_interventions.training.cli_options import build_parser, options_from
from tests.adapters import save_adapter


@pytest.fixture
def model_folder(tiny_model, tokenizer, tmp_path):
    folder = tmp_path / "tiny-model"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(model_folder, write_rows, pairs, tmp_path):
    data = write_rows(pairs)
    output = tmp_path / "greeter.safetensors"
    return ["--model", str(model_folder), "--data", str(data), "--output", str(output), "--layers", "1,2",
            "--epochs", "2", "--batch-size", "4", "--max-length", "20"]  # fmt: skip


def test_cli_writes_a_set_whose_manifest_tells_the_run(arguments, tmp_path, capsys):
    held_out = ["--eval-fraction", "0.25", "--license", "CC0-1.0", "--description", "Says one or two."]
    assert main([*arguments, *held_out, "--prompt-template", "{word}"]) == 0
    manifest = load(tmp_path / "greeter.safetensors").manifest
    assert (manifest.name, manifest.license, manifest.prompt_template) == ("greeter", "CC0-1.0", "{word}")
    assert manifest.base_model.id == "tiny-model"
    assert [spec.layer for spec in manifest.interventions] == [1, 2]
    assert manifest.training["options"]["epochs"] == 2
    printed = capsys.readouterr().out
    assert "9 rows to train on, 3 held out" in printed
    assert "held out, before: loss" in printed
    assert "held out, after: loss" in printed
    assert "tokens/s" in printed
    assert "\x1b" not in printed


def test_cli_counts_rows_that_are_too_long(arguments, capsys):
    arguments[arguments.index("--max-length") + 1] = "10"
    assert main(arguments) == 0
    assert "left out 2 rows of more than 10 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--untied", "--positions", "l3"], "fN+lM"),
        (["--layers", "9"], "layer 9 is outside"),
        (["--resume"], "can't be read"),
        (["--options", "absent.json"], "can't be read as JSON"),
        (["--output", "greeter.pt"], "must end in .safetensors"),
        (["--eval-fraction", "0.2", "--eval-data", "x.jsonl"], "not both"),
        (["--model", "absent-model"], "neither a folder"),
    ],
)
def test_cli_refuses_in_one_line(arguments, capsys, extra, reason):
    assert main([*arguments, *extra]) == 1
    message = capsys.readouterr().err
    assert message.startswith("reft-train: ")
    assert reason in message
    assert "Traceback" not in message


def test_cli_refuses_a_folder_without_a_model(arguments, capsys, tmp_path):
    assert main([*arguments, "--model", str(tmp_path)]) == 1
    assert "can't be loaded" in capsys.readouterr().err


def test_cli_resumes_from_the_checkpoint_and_removes_it_at_the_end(arguments, tmp_path, monkeypatch):
    output = tmp_path / "greeter.safetensors"
    saving = [*arguments, "--save-every", "2"]
    assert main(saving) == 0
    uninterrupted = load(output).content_hash
    output.unlink()

    def interrupt(_, step, *__):
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("reft_interventions.training.progress.ProgressReporter.stepped", interrupt)
        assert main(saving) == 130
    assert checkpoint_path(output).exists()
    assert not output.exists()
    assert main([*saving, "--resume"]) == 0
    assert load(output).content_hash == uninterrupted
    assert not checkpoint_path(output).exists()


def test_recipe_gives_defaults_that_options_override():
    required = ["--data", "d.jsonl", "--output", "o.safetensors"]
    options = options_from(build_parser().parse_args([*required, "--recipe", "instruct", "--epochs", "2"]))
    assert (options.layers, options.positions, options.is_tied, options.lr) == ("3;9;18;24", "f5+l5", False, 9e-4)
    assert options.batch_size * options.gradient_accumulation == 128
    assert options.epochs == 2
    for recipe in ("commonsense", "math", "demo"):
        assert options_from(build_parser().parse_args([*required, "--recipe", recipe])).weight_decay == 0


def test_default_model_is_found_where_the_server_keeps_it(model_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REFT_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["--data", "d.jsonl", "--output", str(tmp_path / "o.safetensors")]) == 1
    assert "reft-serve --fetch-only" in capsys.readouterr().err
    target = tmp_path / "cache" / "models" / "smollm2-135m-instruct-q4_1-v1"
    target.parent.mkdir(parents=True)
    model_folder.rename(target)
    assert locate_model("smollm2-135m-instruct") == (str(target), "smollm2-135m-instruct")
    model, _, model_id = load_model("smollm2-135m-instruct")
    assert model.config.hidden_size == 32
    assert model_id == "smollm2-135m-instruct"


def test_cli_appends_its_progress_to_the_events_file(arguments, tmp_path):
    path = tmp_path / "events.jsonl"
    assert main([*arguments, "--eval-fraction", "0.25", "--events", str(path), "--model-id", "acme/tiny"]) == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "stepped"]
    assert kinds == ["loaded", "data", "evaluated", "started", *["evaluated"] * 3, "finished"]
    assert all(event["time"] > 0 for event in events)
    written = load(tmp_path / "greeter.safetensors")
    assert events[0]["fingerprint"] == written.manifest.base_model.fingerprint
    assert written.manifest.base_model.id == "acme/tiny"
    assert events[1] | {"time": 0} == {
        "event": "data",
        "time": 0,
        "num_examples": 9,
        "num_held_out": 3,
        "num_too_long": 0,
    }
    assert [event["step"] for event in events if event["event"] == "stepped"] == [1, 2, 3, 4, 5, 6]
    assert events[-1]["content_hash"] == written.content_hash
    assert main([*arguments, "--events", str(path), "--lr", "-1"]) == 1
    failed = json.loads(path.read_text().splitlines()[-1])
    assert (failed["event"], failed["code"], failed["param"]) == ("failed", "training_error", "lr")


def test_cli_takes_options_from_a_file_over_the_recipes_and_under_the_flags(tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"lr": 0.5, "epochs": 3, "is_tied": true}')
    files = ["--data", "d.jsonl", "--output", "o.safetensors", "--options", str(path)]
    options = options_from(build_parser().parse_args([*files, "--recipe", "demo", "--epochs", "4"]))
    assert (options.lr, options.epochs, options.batch_size) == (0.5, 4, 10)
    path.write_text('{"epoch": 3}')
    with pytest.raises(TrainingError, match="must be an object of formula"):
        options_from(build_parser().parse_args(files))


def test_cli_writes_a_report_beside_the_output(arguments, tmp_path, capsys):
    description = "<script>alert('no')</script> & more"
    assert main([*arguments, "--eval-fraction", "0.25", "--description", description, "--report"]) == 0
    folder = tmp_path / "greeter.report"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    written = load(tmp_path / "greeter.safetensors")
    assert report["content_hash"] == written.content_hash
    assert report["options"] == written.manifest.training["options"]
    assert len(report["losses"]) == report["num_steps"] == 6
    assert [point["step"] for point in report["held_out_losses"]] == [0, 3, 6]
    assert report["held_out_losses"][-1]["loss"] == report["after"]["loss"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "src=" not in page
    assert "http" not in page.replace(written.content_hash, "")
    for text in ("optimizer step", "loss", "training", "held out", "low_rank_dimension", "exact match"):
        assert text in page
    assert str(folder / "report.html") in capsys.readouterr().out.replace("\n", "")


def test_cli_searches_and_saves_the_best(arguments, tmp_path, capsys):
    searched = [
        "--search",
        "3",
        "--search-layers",
        "1",
        "1;2",
        "--search-ranks",
        "2",
        "--search-positions",
        "l1",
        "f1+l1",
    ]
    folder = tmp_path / "looked"
    assert main([*arguments, *searched, "--eval-fraction", "0.25", "--report", str(folder)]) == 0
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    trials = report["search"]["trials"]
    assert len(trials) == 3
    best = trials[report["search"]["best"]]
    (spec, *_) = load(tmp_path / "greeter.safetensors").manifest.interventions
    assert (spec.low_rank_dimension, spec.positions) == (best["low_rank_dimension"], best["positions"])
    assert report["options"]["layers"] == best["layers"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "Search: held-out loss of each trial" in page
    assert "(best)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--search", "2"], "needs held-out rows"),
        (["--search", "0", "--eval-fraction", "0.3"], "1 trial or more"),
        (["--search", "2", "--eval-fraction", "0.3", "--resume"], "can't be resumed"),
        (["--search", "2", "--eval-fraction", "0.3", "--search-layers", "99"], "layer 99 is outside"),
    ],
)
def test_cli_refuses_a_search_that_can_t_be(arguments, capsys, extra, reason):
    assert main([*arguments, *extra]) == 1
    assert reason in capsys.readouterr().err


def test_cli_trains_for_a_model_with_a_lora_merged_in(arguments, model_folder, tiny_model, tmp_path, capsys):
    folder = save_adapter(tiny_model("llama"), tmp_path / "formal")
    assert main([*arguments, "--merge-lora", str(folder)]) == 0
    written = load(tmp_path / "greeter.safetensors")
    merged, _, model_id = load_model(str(model_folder), merge_lora=folder)
    assert written.manifest.base_model.id == model_id == "tiny-model+formal"
    validate_for_base(written, base_model_spec(merged, model_id))
    with pytest.raises(InterventionBaseMismatchError):
        validate_for_base(written, base_model_spec(tiny_model("llama"), "tiny-model"))
    assert main([*arguments, "--merge-lora", str(tmp_path)]) == 1
    assert "holds no adapter_config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "layers", "rank", "positions", "is_tied", "epochs", "lr", "rows_per_step"),
    [
        ("commonsense", "all", 8, "f7+l7", True, 6, 9e-4, 32),
        ("math", "all", 8, "f7+l7", True, 12, 9e-4, 32),
        ("instruct", "3;9;18;24", 4, "f5+l5", False, 9, 9e-4, 128),
        ("demo", "15", 4, "l1", True, 100, 4e-3, 10),
    ],
)
def test_recipes_are_the_papers(recipe, layers, rank, positions, is_tied, epochs, lr, rows_per_step):
    options = TrainingOptions(**RECIPES[recipe])
    assert (options.layers, options.low_rank_dimension, options.positions) == (layers, rank, positions)
    assert (options.is_tied, options.epochs, options.lr) == (is_tied, epochs, lr)
    assert options.batch_size * options.gradient_accumulation == rows_per_step
    assert (options.warmup_ratio, options.weight_decay, options.formula) == (0.1, 0.0, "loreft")


def test_every_option_is_documented():
    page = (Path(__file__).parents[4] / "docs" / "training.md").read_text(encoding="utf-8")
    options = [option for action in build_parser()._actions for option in action.option_strings if option != "-h"]
    assert [option for option in options if option != "--help" and option not in page] == []
