"""Every operation of the OpenAPI document, sent what it allows and what it forbids, under keys of two tenants.

No 5xx but a deliberate one, and no answer that the document does not describe. New routes are covered as they come.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient
from transformers import PreTrainedModel

from reft_interventions import FileLimits, InterventionSet, base_model_spec, dumps
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.api.settings import ApiSettings
from reft_server.engine import EngineSettings, build_engine
from reft_server.engine.pool import InterventionPool
from reft_server.fine_tuning.runner import TrainingBase
from reft_server.fine_tuning.service import FineTuning
from reft_server.fine_tuning.settings import FineTuningSettings
from reft_server.registry import Registry
from reft_server.tenants import SCOPES, TenantDirectory, TenantLimits
from tests.fakes.tokenizers import byte_level_tokenizer

NUM_EXAMPLES = int(os.environ.get("REFT_TEST_OPENAPI_EXAMPLES", "12"))
"""Of each operation and each way to generate; more, at random, by hand: REFT_TEST_OPENAPI_EXAMPLES=1000."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
TENANTS = ("acme", "globex", "shared")
NAMES = ("style", "style-2", "nobody-s", "acme/style", "style@1", "base")
KNOWN = {"name": NAMES, "model": NAMES, "tenant": TENANTS, "task": ("translate", "unknown"), "alias": ("prod",)}
"""Values that a generator would hardly guess, by the parameter's name."""


@dataclass(frozen=True)
class World:
    """A server with two tenants' sets, and keys for all of them and for the operator."""

    client: TestClient
    directory: TenantDirectory
    content: bytes

    def prepare(self) -> list[str | None]:
        """Put back what an operation may have taken away. Living keys: of operator and tenants, and no key at all."""
        for tenant in ("acme", "globex"):
            if tenant not in self.directory.snapshot.tenants:
                self.directory.create_tenant(tenant)
            self.directory.set_limits(tenant, TenantLimits())
        created = [self.directory.create_key(tenant, ("infer", "upload"))[1].text for tenant in ("acme", "globex")]
        for key in created:
            headers = {"authorization": f"Bearer {key}"}
            wanted = [f"/v1/interventions/{reference}" for reference in ("style@prod", "style-2")]
            if not all(self.client.get(path, headers=headers).is_success for path in wanted):
                for name in ("style-2", "style"):
                    sent = self.client.post(f"/v1/interventions?name={name}", content=self.content, headers=headers)
                alias = {"version": sent.json()["version"]}
                self.client.put("/v1/interventions/style/aliases/prod", json=alias, headers=headers)
            route = {"targets": [{"intervention": "style@prod"}, {"intervention": "style-2"}]}
            assert self.client.put("/v1/routes/translate", json=route, headers=headers).status_code == 200
        operator = self.directory.create_key("", SCOPES)[1].text
        return [operator, operator, *created, self.directory.create_key("acme", ("infer",))[1].text, None]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., PreTrainedModel],
    make_set: Callable[..., InterventionSet],
) -> Iterator[World]:
    folder, tokenizer = tmp_path_factory.mktemp("openapi"), byte_level_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    base = base_model_spec(model, "tiny")
    settings = EngineSettings(kv_cache_bytes=1 << 22, num_threads=1, model_path="packed")
    engine = build_engine(copy.deepcopy(model), "tiny", settings)
    directory = TenantDirectory.in_memory()
    directory.open()
    pool = InterventionPool(1 << 20)
    registry = Registry(InterventionStore(folder / "store"), pool, engine, base, FileLimits(), directory=directory)
    tuning = FineTuning(
        folder / "tuning", FineTuningSettings(), TrainingBase(folder, "tiny", base.fingerprint, 4), registry
    )
    app = create_app(engine, tokenizer, registry, ApiSettings(max_choices_per_request=4), tuning, directory)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield World(client, directory, dumps(make_set(model)))


def send(world: World, case: schemathesis.Case, key: str | None) -> schemathesis.Response:
    """The answer of the app to the very bytes that schemathesis would send."""
    sent = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
    headers = {name: value for name, value in sent.headers.items() if name.lower() != "authorization"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    answer = world.client.request(str(sent.method), str(sent.url), content=sent.body, headers=headers)
    return schemathesis.Response.from_any(answer)


def without_security(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what it says about keys: schemathesis would make up keys, and we have real ones."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
    return document


@pytest.mark.slow
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_every_operation_keeps_to_the_document(
    world: World, mode: schemathesis.GenerationMode, subtests: pytest.Subtests
) -> None:
    schema = schemathesis.openapi.from_dict(without_security(world.client.get("/openapi.json").json()))
    schema.config.checks.negative_data_rejection.expected_statuses = ["4xx", "501"]
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is schemathesis.GenerationMode.NEGATIVE and not can_be_wrong(operation):
            continue
        with subtests.test(operation=operation.label):
            check_operation(world, operation, mode)


def can_be_wrong(operation: Any) -> bool:
    """Whether anything could be against the document: no path of strings is, and no text, of whatever it is made."""
    return bool(list(operation.query)) or any(not body.media_type.startswith("text/") for body in operation.body)


def check_operation(world: World, operation: Any, mode: schemathesis.GenerationMode) -> None:
    keys = world.prepare()

    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=NUM_EXAMPLES <= 12,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def check(case: schemathesis.Case, data: st.DataObject) -> None:
        for name in case.path_parameters or {}:
            if name in KNOWN and data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(st.sampled_from(KNOWN[name]))
        response = send(world, case, data.draw(st.sampled_from(keys)))
        case.validate_response(response, checks=CHECKS)

    check()


HOSTILE_BODIES = {
    "empty": b"",
    "null": b"null",
    "number": b"1",
    "list": b"[]",
    "nested_lists": b"[" * 100_000,
    "nested_objects": b'{"a":' * 100_000,
    "nested_value": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "long_number": b'{"a":' + b"1" * 5000 + b"}",
    "huge_exponent": b'{"a":1e99999}',
    "nan": b'{"a":NaN}',
    "half_surrogate": b'{"\\ud800":"\\udfff"}',
    "null_character": b'{"a\\u0000b":"\\u0000"}',
    "key_twice": b'{"model":"base","model":["base"]}',
    "invalid_utf8": b'{"a":"\xff"}',
    "utf16": '{"a":1}'.encode("utf-16"),
    "byte_order_mark": b"\xef\xbb\xbf{}",
    "two_documents": b"{}{}",
}


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "multipart/form-data; boundary=x", ""])
def test_every_route_survives_hostile_bodies(world: World, content_type: str) -> None:
    document = world.client.get("/openapi.json").json()
    operator = str(world.prepare()[0])
    headers = {"authorization": f"Bearer {operator}", "content-type": content_type}
    for path, operations in document["paths"].items():
        for method in (name for name, operation in operations.items() if "requestBody" in operation):
            for name, body in HOSTILE_BODIES.items():
                filled = path.replace("{tenant}", "acme").replace("{task}", "translate").replace("{name}", "style")
                response = world.client.request(method.upper(), filled, content=body, headers=headers)
                assert response.status_code < 500, (method, path, name, response.text)
                assert response.is_success or response.json()["error"]["message"].isprintable()
