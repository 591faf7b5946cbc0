"""The settings tree: bounds, precedence, misspellings, and the parts it hands on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ByteSize

from reft_server.api.settings import ApiSettings
from reft_server.config import EngineGroup, FineTuningGroup, check_environment, load_settings, setting_fields
from reft_server.engine.settings import EngineSettings
from reft_server.errors import ConfigurationError
from reft_server.fine_tuning.settings import FineTuningSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's shell reaches a test."""
    for field in setting_fields():
        monkeypatch.delenv(field.variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_settings_default_to_the_engines_and_the_apis_own() -> None:
    settings = load_settings()
    assert settings.engine.to_engine_settings() == EngineSettings()
    assert settings.to_api_settings() == ApiSettings()
    assert settings.fine_tuning.to_fine_tuning_settings() == FineTuningSettings()


def test_a_gpus_steps_are_larger_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = load_settings().engine.to_engine_settings("cuda")
    assert (on_gpu.max_num_seqs, on_gpu.max_num_batched_tokens) == (256, 2048)
    monkeypatch.setenv("REFT_ENGINE_MAX_NUM_SEQS", "7")
    told = load_settings().engine.to_engine_settings("cuda")
    assert (told.max_num_seqs, told.max_num_batched_tokens) == (7, 2048)


def test_engine_group_mirrors_every_engine_setting() -> None:
    assert list(EngineGroup.model_fields) == [field.name for field in dataclasses.fields(EngineSettings)]
    assert list(FineTuningGroup.model_fields) == [field.name for field in dataclasses.fields(FineTuningSettings)]


def test_settings_follow_the_xdg_folders(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.cache_dir == tmp_path / "cache" / "reft-serve"
    assert settings.store_dir == tmp_path / "data" / "reft-serve" / "store"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_settings_ignore_an_xdg_folder_that_is_not_absolute(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert load_settings().cache_dir == Path.home() / ".cache" / "reft-serve"


def test_settings_read_the_environment_and_an_override_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFT_PORT", "9000")
    monkeypatch.setenv("REFT_ENGINE_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("REFT_ENGINE_MAX_QUEUE_LEN", "8")
    monkeypatch.setenv("REFT_FINE_TUNING_MAX_MEMORY_BYTES", "1GiB")
    settings = load_settings({"port": "9001", "engine": {"max_num_seqs": "6"}})
    assert settings.port == 9001
    assert settings.engine.max_num_seqs == 6
    assert settings.engine.max_queue_len == 8
    assert settings.fine_tuning.max_memory_bytes == 1 << 30


def test_settings_accept_sizes_with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFT_ENGINE_KV_CACHE_BYTES", "1GiB")
    monkeypatch.setenv("REFT_MAX_UPLOAD_BYTES", "10MB")
    settings = load_settings()
    assert settings.engine.to_engine_settings().kv_cache_bytes == 1 << 30
    assert settings.to_api_settings().max_upload_bytes == 10_000_000
    assert type(settings.to_api_settings().max_upload_bytes) is int


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REFT_PORT", "65536"),
        ("REFT_PORT", "-1"),
        ("REFT_PORT", "http"),
        ("REFT_DTYPE", "int8"),
        ("REFT_DEVICE", "tpu"),
        ("REFT_MODEL_SOURCE", "torrent"),
        ("REFT_MAX_UPLOAD_BYTES", "1B"),
        ("REFT_MAX_BODY_BYTES", "many"),
        ("REFT_REQUEST_TIMEOUT_S", "0"),
        ("REFT_ENGINE_MAX_NUM_SEQS", "0"),
        ("REFT_ENGINE_MODEL_PATH", "fast"),
        ("REFT_LOG_LEVEL", "LOUD"),
    ],
)
def test_settings_refuse_a_bad_value_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.param == variable
    assert variable in caught.value.message
    assert value in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("REFT_PROT", "REFT_PORT"),
        ("REFT_ENGINE_MAX_SEQS", "REFT_ENGINE_MAX_NUM_SEQS"),
        ("REFT_CACHEDIR", "REFT_CACHE_DIR"),
        ("reft_prot", "REFT_PORT"),
    ],
)
def test_unknown_variable_stops_the_start_and_names_the_nearest(variable: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean {nearest}\\?"):
        check_environment({variable: "1"})


def test_unknown_variable_like_no_other_gets_no_wild_guess() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown setting REFT_XYZZY: `reft-serve --help` lists them all"):
        check_environment({"REFT_XYZZY": "1"})


def test_variables_of_the_client_and_of_others_are_let_through() -> None:
    check_environment({"REFT_URL": "http://x", "REFT_API_KEY": "k", "PATH": "/bin", "REFTING": "1", "reft_port": "1"})


@pytest.mark.parametrize("field", setting_fields(), ids=lambda field: field.variable)
def test_every_setting_has_a_description_and_bounds(field) -> None:  # type: ignore[no-untyped-def]
    assert field.info.description
    assert field.info.description.endswith(".")
    if field.info.annotation in (int, float, ByteSize):
        assert len(field.info.metadata) >= 2, "a number needs a lower and an upper bound"


def test_settings_come_from_a_file_and_variables_and_flags_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "reft.toml"
    path.write_text(
        'port = 1\nlog_level = "debug"\n[engine]\nmax_queue_len = 1\nmax_num_seqs = 2\nkv_cache_bytes = "1GiB"\n'
    )
    monkeypatch.setenv("REFT_CONFIG", str(path))
    monkeypatch.setenv("REFT_LOG_LEVEL", "warning")
    monkeypatch.setenv("REFT_ENGINE_MAX_QUEUE_LEN", "3")
    settings = load_settings({"engine": {"max_num_seqs": "4"}})
    assert (settings.port, settings.log_level, settings.config) == (1, "warning", path)
    assert (settings.engine.max_queue_len, settings.engine.max_num_seqs) == (3, 4)
    assert settings.engine.kv_cache_bytes == 1 << 30
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "Unknown setting prot in {path}: did you mean port?"),
        (
            "[engine]\nmax_que_len = 1",
            "Unknown setting engine.max_que_len in {path}: did you mean engine.max_queue_len?",
        ),
        ("[engin]\nmax_queue_len = 1", "did you mean engine.max_queue_len?"),
        ("engine = 1", "Unknown setting engine in"),
        ("[port]\nhost = 1", "did you mean"),
        ('config = "another.toml"', "Unknown setting config"),
        ("[engine]\nmax_num_seqs = 0", "engine.max_num_seqs in {path} is 0: Input should be greater than"),
        ("port = [1]", "port in {path} is [1]"),
        ("port: 1", "{path} is not TOML"),
        ("\x00", "{path} is not TOML"),
        (None, "Can't read the settings file {path}: No such file"),
    ],
)
def test_settings_file_at_fault_is_refused_in_one_sentence(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "reft.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"config": str(path)})
    assert words.format(path=path) in caught.value.message
    assert "\n" not in caught.value.message


def test_value_of_a_variable_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reft.toml").write_text("[engine]\nmax_num_seqs = 5\n")
    monkeypatch.setenv("REFT_ENGINE_MAX_NUM_SEQS", "0")
    with pytest.raises(ConfigurationError, match="--engine-max-num-seqs"):
        load_settings({"config": tmp_path / "reft.toml"})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]
