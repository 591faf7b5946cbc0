"""Our client's administration and grants against the real app: both sides mean the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from reft_client import InvalidArgumentError, NotFoundError, PermissionDeniedError, ReftClient
from reft_interventions import dumps
from reft_server.tenants import TenantDirectory
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]


@dataclass(frozen=True)
class World:
    """A server, and a client with an operator's key."""

    http: TestClient
    operator: ReftClient

    def client(self, key: str) -> ReftClient:
        """Another client of it."""
        return client_of(self.http, key)


def client_of(http: TestClient, key: str) -> ReftClient:
    """Our client, with the app in the place of the network."""

    def send(request: httpx.Request) -> httpx.Response:
        answer = http.request(request.method, str(request.url), content=request.read(), headers=dict(request.headers))
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    return ReftClient("http://testserver", key, transport=httpx.MockTransport(send))


@pytest.fixture
def world(make_client: MakeClient) -> World:
    directory = TenantDirectory.in_memory()
    directory.open()
    _, born = directory.create_key("", ["admin"])
    http = make_client(directory=directory)
    return World(http, client_of(http, born.text))


def test_client_manages_a_tenant_from_its_birth_to_its_end(world: World) -> None:
    admin = world.operator.admin
    assert admin.create_tenant("acme", {"max_sets": 3}).limits.max_sets == 3
    assert admin.set_limits("acme", {"requests_per_minute": 60}).limits.max_sets is None
    assert [tenant.name for tenant in admin.tenants().data] == ["shared", "acme"]
    assert admin.tenant("acme").limits.requests_per_minute == 60
    made = admin.create_key("acme", ["infer"], description="the app", expires_in_s=60)
    assert (made.scopes, made.description, made.state) == (("infer",), "the app", "active")
    assert world.client(made.key).models().data
    rotated = admin.rotate_key(made.id, overlap_s=30)
    assert admin.revoke_key(rotated.id).state == "revoked"
    assert [key.state for key in admin.keys("acme").data] == ["active", "revoked"]
    assert admin.delete_tenant("acme").deleted
    with pytest.raises(NotFoundError):
        admin.tenant("acme")
    page = admin.audit(limit=2, action="tenant.", tenant="acme")
    assert ([one.action for one in page.data], page.has_more) == (["tenant.delete", "tenant.close"], True)
    rest = admin.audit(after=page.last_id, action="tenant.", tenant="acme", since=0, until=1e11)
    assert [one.action for one in rest.data] == ["tenant.set_limits", "tenant.create"]
    assert admin.audit(order="asc", limit=1).data[0].action == "key.create"
    assert admin.reload().changed == ()


def test_client_grants_a_set_and_takes_it_back(world: World, tmp_path: Path) -> None:
    clients = {}
    for tenant in ("acme", "globex"):
        world.operator.admin.create_tenant(tenant)
        clients[tenant] = world.client(world.operator.admin.create_key(tenant).key)
    path = tmp_path / "style.safetensors"
    path.write_bytes(dumps(make_set(1)))
    owner = clients["acme"].interventions
    owner.upload(path)
    assert owner.grant("style", "globex").tenant == "globex"
    assert [one.tenant for one in owner.grants("style").data] == ["globex"]
    assert [info.name for info in clients["globex"].interventions.list().data] == ["acme/style"]
    assert owner.withdraw("style", "globex").deleted
    assert clients["globex"].interventions.list().data == ()
    with pytest.raises(NotFoundError):
        owner.grant("none", "globex")
    with pytest.raises(PermissionDeniedError):
        clients["acme"].admin.tenants()


def test_client_refuses_what_can_not_be_before_it_is_sent(world: World) -> None:
    admin = world.operator.admin
    with pytest.raises(InvalidArgumentError, match="max_set"):
        admin.create_tenant("acme", {"max_set": 1})
    with pytest.raises(InvalidArgumentError, match="max_sets"):
        admin.set_limits("shared", {"max_sets": -1})
    with pytest.raises(InvalidArgumentError, match="scopes"):
        admin.create_key("shared", ["everything"])
    with pytest.raises(InvalidArgumentError, match="overlap_s"):
        admin.rotate_key("x", overlap_s=-1)
