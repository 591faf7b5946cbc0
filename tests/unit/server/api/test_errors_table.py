"""Every error type has a status, and the wire shape is OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from reft_interventions import errors as interventions
from reft_server import errors as server
from reft_server.api.errors_table import STATUS_BY_ERROR, error_response, status_of
from reft_server.errors import EngineDeadError, EngineOverloadedError, InvalidRequestError, ReftError


def subclasses(cls: type[ReftError]) -> Iterator[type[ReftError]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from subclasses(subclass)


def ours() -> list[type[ReftError]]:
    modules = (interventions.__name__, server.__name__)
    return sorted({cls for cls in subclasses(ReftError) if cls.__module__ in modules}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", ours(), ids=lambda cls: cls.__name__)
def test_errors_table_maps_every_type(cls: type[ReftError]) -> None:
    assert cls in STATUS_BY_ERROR


def test_errors_table_maps_no_stranger() -> None:
    assert set(STATUS_BY_ERROR) == set(ours())


def test_status_of_an_unknown_subclass_is_its_parents() -> None:
    class NarrowerError(InvalidRequestError):
        code = "narrower"

    assert status_of(NarrowerError("x")) == 400


def test_error_is_one_bounded_printable_line_whatever_a_client_put_into_it() -> None:
    error = InvalidRequestError("no \x1b[31m such\r\nlevel=ERROR \u202ething" + "a" * 5000, param="b\n" * 500)
    assert error.message.startswith("no \\x1b[31m such\\r\\nlevel=ERROR \\u202ething")
    assert str(error) == error.message
    for text, length in ((error.message, 2000), (error.param or "", 200)):
        assert text.isprintable()
        assert len(text) == length + 1


def test_error_response_tells_when_to_try_again() -> None:
    assert error_response(EngineOverloadedError("full", retry_after_s=2.2)).headers["retry-after"] == "3"
    assert error_response(EngineDeadError("dead")).headers["retry-after"] == "5"
    assert "retry-after" not in error_response(InvalidRequestError("wrong")).headers


def test_error_response_has_openais_shape_for_any_text() -> None:
    response = error_response(InvalidRequestError("half a pair: \ud800", param="prompt"))
    assert json.loads(bytes(response.body)) == {
        "error": {
            "message": "half a pair: \\ud800",
            "type": "invalid_request_error",
            "param": "prompt",
            "code": "invalid_request",
        }
    }
