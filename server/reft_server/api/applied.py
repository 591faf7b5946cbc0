"""The interventions that a request names become sets that the engine can run on its prompts."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from array import array
from collections.abc import Sequence
from typing import Any

from reft_client.types import AppliedIntervention, ChatCompletionRequest, ChatMessage, InterventionRef, SamplingFields
from reft_interventions.errors import (
    InterventionNotFoundError,
    InterventionSourceError,
    InvalidInterventionNameError,
)
from reft_interventions.folded import FoldedSet
from reft_server.engine.types import GenerationRequest, SamplingParams
from reft_server.registry import ResolvedIntervention
from reft_server.tenants import Caller

from .context import ApiContext
from .model_names import model_not_found


async def apply_interventions(
    context: ApiContext,
    caller: Caller,
    body: SamplingFields,
    prompts: Sequence[tuple[int, ...]],
    refs: Sequence[InterventionRef],
) -> tuple[tuple[AppliedIntervention, ...], tuple[FoldedSet, ...]]:
    """Resolve the interventions `refs` of a request, in order, and run the source prompts of those that take one.

    Raises:
        ReftError: a name, a choice of rank dimensions or a source that can't be served; the engine refused a source.
    """
    resolved = [await _resolve(context, caller, body, ref) for ref in refs]
    sources = [await _source_token_ids(context, body, ref, one) for ref, one in zip(refs, resolved, strict=True)]
    placed = await context.registry.place([one.folded for one in resolved])
    for folded, source in zip(placed, sources, strict=True):
        for prompt in prompts if source is not None else ():
            folded.check_source_length(len(prompt), len(source or ()))
    applied = tuple(_applied(one, source) for one, source in zip(resolved, sources, strict=True))
    if all(source is None for source in sources):
        return applied, placed
    pairs = zip(placed, sources, strict=True)
    tasks = [asyncio.create_task(_with_source(context, caller, body, folded, source)) for folded, source in pairs]
    try:
        return applied, tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # one has failed, or the client has gone
            task.cancel()


async def _resolve(
    context: ApiContext, caller: Caller, body: SamplingFields, ref: InterventionRef
) -> ResolvedIntervention:
    try:
        return await context.registry.resolve(
            ref.name, ref.version, scale=ref.scale, subspaces=ref.subspaces, tenant=caller.tenant.name
        )
    except (InterventionNotFoundError, InvalidInterventionNameError) as error:
        if body.model is not None and body.task is None and not body.intervention_refs():
            raise model_not_found(body.model) from error
        error.param = "intervention"
        raise


def _applied(one: ResolvedIntervention, source: tuple[int, ...] | None) -> AppliedIntervention:
    optional: dict[str, Any] = {
        "tenant": one.owner or None,
        "subspaces": one.subspaces,
        "source_tokens": None if source is None else len(source),
    }
    return AppliedIntervention(
        name=one.name,
        version=one.version,
        content_hash=one.content_hash,
        scale=one.scale,
        **{name: value for name, value in optional.items() if value is not None},
    )


async def _source_token_ids(
    context: ApiContext, body: SamplingFields, ref: InterventionRef, resolved: ResolvedIntervention
) -> tuple[int, ...] | None:
    """The source prompt as the request's own prompt would be tokenized; None for a set that takes none."""
    needs_source = bool(resolved.folded.open_interventions)
    if ref.source is None:
        if needs_source:
            raise InterventionSourceError(
                f'{ref.name!r} is an interchange: give it a prompt, {{"name": "{ref.name}", "source": "..."}}',
                param="source",
            )
        return None
    if not needs_source:
        raise InterventionSourceError(f"{ref.name!r} takes no source: leave it out", param="source")
    token_ids = await _tokenize(context, ref.source, is_chat=isinstance(body, ChatCompletionRequest))
    window = context.engine.model_info.max_model_len
    if not token_ids or len(token_ids) >= window:
        raise InterventionSourceError(
            f"the source of {ref.name!r} has {len(token_ids)} tokens: give 1 to {window - 1}", param="source"
        )
    return token_ids


async def _tokenize(
    context: ApiContext, source: str | tuple[int, ...] | tuple[ChatMessage, ...], *, is_chat: bool
) -> tuple[int, ...]:
    if isinstance(source, str):
        if is_chat:
            return await context.tokenization.encode_chat([ChatMessage(role="user", content=source)])
        return await context.tokenization.encode(source, param="source")
    messages = [one for one in source if isinstance(one, ChatMessage)]
    if bool(messages) != is_chat:
        expected = "a text or a list of messages" if is_chat else "a text or a list of token ids"
        raise InterventionSourceError(f"the source of this request must be {expected}", param="source")
    if messages:
        return await context.tokenization.encode_chat(messages)
    return tuple(one for one in source if isinstance(one, int))


async def _with_source(
    context: ApiContext, caller: Caller, body: SamplingFields, folded: FoldedSet, source: tuple[int, ...] | None
) -> FoldedSet:
    if source is None:
        return folded
    request = GenerationRequest(
        request_id=f"source-{uuid.uuid4().hex}",
        prompt_token_ids=source,
        sampling=SamplingParams(max_tokens=1),
        tenant=caller.share(body.user),
        priority=body.priority,
        cache_salt=caller.cache_salt(body.cache_salt, is_shared=context.settings.shares_prefixes),
        deadline_s=context.settings.request_timeout_s,
    )
    rows = await context.sources.get(folded, request)
    source_hash = hashlib.sha256(array("q", source).tobytes()).hexdigest()
    # Not here: the rows go to the engine's device, behind the step that runs there.
    return await asyncio.to_thread(folded.with_source, rows, source_hash)
