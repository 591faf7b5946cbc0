"""`GET /v1/models`: the base model, and every intervention that may be named as `model`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from reft_client.types import ModelCard, ModelList
from reft_interventions.errors import InterventionNotFoundError, InvalidInterventionNameError

from ..context import ApiContext, Context
from ..model_names import model_not_found
from ..openapi import ERROR

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List what `model` may name")
async def list_models(context: Context) -> ModelList:
    """The base model first, then the newest version of each intervention (`root` and `parent`: the base model)."""
    stored = await asyncio.to_thread(context.registry.list)
    cards = (_intervention_card(context, item.name, int(item.created_at)) for item in stored)
    return ModelList(data=(_base_card(context), *cards))


@router.get(
    "/v1/models/{model:path}",
    summary="Show one model",
    responses={404: {**ERROR, "description": "No such model."}},
)
async def get_model(context: Context, model: str) -> ModelCard:
    """The base model under any of its names, or an intervention (`name`, `name@version`)."""
    ref = context.model_names.intervention_of(model)
    if ref is None:
        return _base_card(context)
    try:
        stored = context.registry.get(ref.name, ref.version)
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


def _intervention_card(context: ApiContext, name: str, created: int) -> ModelCard:
    return ModelCard(
        id=name,
        created=created,
        root=context.model_names.base,
        parent=context.model_names.base,
        max_model_len=context.engine.model_info.max_model_len,
    )
