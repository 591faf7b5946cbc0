"""PEFT's methods under our trainer's loop: the same batches in the same order, loss, optimizer and schedule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reft_interventions.training.batches import collate, epoch_order
from reft_interventions.training.data import Dataset
from reft_interventions.training.loss import answer_loss
from reft_interventions.training.options import TrainingOptions
from reft_interventions.training.schedule import learning_rate


class AdaptedModel(nn.Module):
    """A PEFT model that is called as a plain one: with `logits_to_keep`, so that it computes no logits in vain."""

    def __init__(self, model: peft.PeftModel) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_base_model().get_output_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool, logits_to_keep: int) -> Any:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, logits_to_keep=logits_to_keep
        )


def train_peft(
    model: PreTrainedModel,
    config_class: str,
    arguments: Mapping[str, Any],
    options: TrainingOptions,
    data: Dataset,
    pad_token_id: int,
    *,
    starts_from_rows: bool = False,
) -> AdaptedModel:
    """Train an adapter; `options` gives epochs, rate, batch size, precision and seed.

    With `starts_from_rows`, virtual tokens begin as the first tokens of the data, or as their keys and values.
    """
    torch.manual_seed(options.seed)
    config = getattr(peft, config_class)(task_type="CAUSAL_LM", **arguments)
    adapted = AdaptedModel(peft.get_peft_model(model, config)).eval()
    if starts_from_rows:
        _start_from_rows(adapted.model, data)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
    lengths = [example.num_tokens for example in data.examples]
    orders = [epoch_order(lengths, options.batch_size, options.seed, epoch) for epoch in range(options.epochs)]
    steps = [indices for order in orders for indices in order]
    for step, indices in enumerate(steps):
        batch = collate([data.examples[index] for index in indices], pad_token_id)
        with torch.autocast(adapted.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
            loss = answer_loss(adapted, batch, []) / batch.num_answer_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), options)
        optimizer.step()
        optimizer.zero_grad()
    return adapted


@torch.no_grad()
def _start_from_rows(model: peft.PeftModel, data: Dataset) -> None:
    config: Any = model.active_peft_config
    row_ids = (token_id for example in data.examples for token_id in (*example.prompt_ids, *example.answer_ids))
    token_ids = torch.tensor([list(itertools.islice(row_ids, config.num_virtual_tokens))], device=model.device)
    if config.peft_type == peft.PeftType.PROMPT_TUNING:
        embeddings = model.get_base_model().get_input_embeddings()(token_ids)[0]  # [num_virtual_tokens, hidden_size]
        model.prompt_encoder[model.active_adapter].embedding.weight.copy_(embeddings)
        return
    with model.disable_adapter():
        cache = model(input_ids=token_ids, use_cache=True).past_key_values
    peft.initialize_kv_prefix_from_past_key_values(
        model, past_key_values=cache, num_virtual_tokens=config.num_virtual_tokens
    )


def num_trained(adapted: AdaptedModel) -> int:
    """Trained parameters."""
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
