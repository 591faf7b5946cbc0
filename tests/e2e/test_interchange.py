"""A source prompt over HTTP, on the default model: its last token's whole row decides what comes next."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
import torch

from reft_client import BadRequestError, ReftClient
from reft_interventions import BaseModelRef, InterventionSet, InterventionSpec, Manifest, dumps
from reft_server.base_model import default_model_path
from tests.e2e.conftest import Server

PROMPT = "The capital of Italy is"
SOURCE = "The capital of France is"


@pytest.fixture(scope="module")
def swap(http: httpx.Client) -> str:
    """An interchange of all dimensions behind the last layer: the next token is the source's."""
    config = json.loads((default_model_path() / "config.json").read_text(encoding="utf-8"))
    size, num_layers = config["hidden_size"], config["num_hidden_layers"]
    spec = InterventionSpec(
        layer=num_layers - 1,
        component="block_output",
        formula="dii",
        low_rank_dimension=size,
        positions="l1",
        parameters=0,
    )
    manifest = Manifest(
        base_model=BaseModelRef(id="smollm2-135m-instruct", hidden_size=size, num_layers=num_layers),
        interventions=(spec,),
        subspaces={"half": tuple(range(size // 2)), "one": (0,)},
    )
    one = InterventionSet.create(manifest, [{"rotate_layer": torch.eye(size, dtype=torch.bfloat16)}])
    http.post("/v1/interventions", params={"name": "swap"}, content=dumps(one)).raise_for_status()
    return "swap"


def test_openais_sdk_sends_a_source_in_its_extra_body(sdk: openai.OpenAI, swap: str) -> None:
    def first_token(prompt: str, **extra: object) -> str:
        fields = {"model": "base", "prompt": prompt, "max_tokens": 1, "temperature": 0, "extra_body": extra}
        completion = sdk.completions.create(**fields)  # type: ignore[call-overload]
        return str(completion.choices[0].text)

    base, source = first_token(PROMPT), first_token(SOURCE)
    assert (base, source) == (" Rome", " Paris")
    assert first_token(PROMPT, intervention={"name": swap, "source": SOURCE}) == source
    assert first_token(PROMPT, intervention={"name": swap, "source": SOURCE, "subspaces": ["one"]}) == base
    assert first_token(PROMPT, intervention={"name": swap, "source": SOURCE, "scale": 0}) == base


def test_the_client_sends_a_chat_source_and_reads_what_was_applied(server: Server, swap: str) -> None:
    with ReftClient(server.url) as client:
        plain = client.chat("What is 3 + 4? Digits only.", max_tokens=1, temperature=0)
        turns = [{"role": "user", "content": "What is 3 + 4? Digits only."}]
        for source in ("What is 3 + 4? Digits only.", turns):
            answer = client.chat(
                "Is the sky blue? Answer with yes or no.",
                intervention={"name": swap, "source": source},
                max_tokens=1,
                temperature=0,
            )
            assert answer.choices[0].message.content == plain.choices[0].message.content
            assert answer.intervention is not None
            assert plain.usage is not None
            assert answer.intervention[0].source_tokens == plain.usage.prompt_tokens
        with pytest.raises(BadRequestError) as caught:
            client.complete(PROMPT, intervention=swap)
        assert caught.value.code == "invalid_intervention_source"
