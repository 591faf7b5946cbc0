"""`GET /v1/models`: the base model, and every intervention that may be named as `model`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from reft_client.types import ModelCard, ModelList
from reft_interventions.errors import InterventionNotFoundError, InvalidInterventionNameError

from ..authentication import Reader
from ..context import ApiContext, Context
from ..model_names import model_not_found
from ..openapi import ERROR

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List what `model` may name")
async def list_models(caller: Reader, context: Context) -> ModelList:
    """The base model first, then the newest version of each intervention (`root` and `parent`: the base model)."""
    cards = await asyncio.to_thread(_intervention_cards, context, caller.tenant.name)
    return ModelList(data=(_base_card(context), *cards))


@router.get(
    "/v1/models/{model:path}",
    summary="Show one model",
    responses={404: {**ERROR, "description": "No such model."}},
)
async def get_model(caller: Reader, context: Context, model: str) -> ModelCard:
    """The base model under any of its names, or an intervention (`name`, `name@version`)."""
    ref = context.model_names.intervention_of(model)
    if ref is None:
        return _base_card(context)
    try:
        stored = context.registry.get(ref.name, ref.version, tenant=caller.tenant.name)
    except (InterventionNotFoundError, InvalidInterventionNameError) as error:
        raise model_not_found(model) from error
    return _intervention_card(context, str(ref), int(stored.created_at))


def _base_card(context: ApiContext) -> ModelCard:
    names = context.model_names
    return ModelCard(
        id=names.base,
        created=context.started_at,
        root=names.base_id,
        max_model_len=context.engine.model_info.max_model_len,
    )


def _intervention_cards(context: ApiContext, tenant: str) -> tuple[ModelCard, ...]:
    registry = context.registry
    return tuple(
        _intervention_card(context, registry.name_of(stored, tenant), int(stored.created_at))
        for stored in registry.list(tenant)
    )


def _intervention_card(context: ApiContext, name: str, created: int) -> ModelCard:
    return ModelCard(
        id=name,
        created=created,
        root=context.model_names.base,
        parent=context.model_names.base,
        max_model_len=context.engine.model_info.max_model_len,
    )
