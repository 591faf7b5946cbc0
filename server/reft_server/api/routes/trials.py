"""`/v1/interventions/{name}/test` and `/compare`: try a stored set."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from reft_client.types import InterventionComparison, InterventionComparisonRequest, InterventionTest

from ..authentication import Infer, Upload
from ..comparison import compare
from ..context import Context
from ..disconnect import run_until_disconnect
from ..intervention_info import self_test_report
from ..lookup import OwnerQuery, VersionQuery, find
from ..openapi import GENERATION_RESPONSES_WHOLE, LOOKUP_RESPONSES, TEST_RESPONSES

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])


@router.post("/{name}/test", summary="Run a set's self-test", responses=LOOKUP_RESPONSES | TEST_RESPONSES)
async def run_self_test(
    caller: Upload, context: Context, name: str, version: VersionQuery = None, tenant: OwnerQuery = None
) -> InterventionTest:
    """A trial forward between two steps, as at the upload: every edited row changes, every other stays bit for bit.

    The stored file is read, if it is not in memory, and its hash checked. 422 where the test fails.
    """
    stored = find(context, caller, name, tenant, version)
    report = await context.registry.test(stored)
    return InterventionTest(
        name=context.registry.name_of(stored, caller.tenant.name),
        version=stored.version,
        content_hash=stored.content_hash,
        self_test=self_test_report(report),
    )


@router.post(
    "/{name}/compare",
    summary="Compare a set with the base model",
    response_model=InterventionComparison,
    responses=GENERATION_RESPONSES_WHOLE,
)
async def compare_intervention(
    request: Request,
    caller: Infer,
    context: Context,
    name: str,
    body: InterventionComparisonRequest,
    version: VersionQuery = None,
    tenant: OwnerQuery = None,
) -> Response:
    """The same prompt, answered by the base model and by the set, side by side, with the same seed.

    The body is that of a completion (`prompt`) or a chat (`messages`), without `model`, `intervention` and `stream`.
    """
    stored = find(context, caller, name, tenant, version)
    comparison = await run_until_disconnect(compare(context, caller, stored, body), request.receive)
    return Response(comparison.model_dump_json(exclude_unset=True), media_type="application/json")
