"""Reading training data: tokens as the server has them, and every bad line named."""

from __future__ import annotations

import hashlib
import json

import pytest

from reft_interventions.errors import TrainingError
from reft_interventions.training import read_dataset, split_dataset
from reft_interventions.training.batches import IGNORED, collate, epoch_order
from reft_interventions.training.data import tokenize_prompt

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def test_pair_prompt_and_answer_are_tokenized_apart_and_answer_ends_with_eos(tokenizer, write_rows):
    path = write_rows([{"prompt": "2+2=", "completion": " 4"}])
    dataset = read_dataset(path, tokenizer, 100)
    (example,) = dataset.examples
    assert example.prompt_ids == tuple(tokenizer("2+2=")["input_ids"])
    assert tokenizer.decode(example.answer_ids) == " 4<|end|>"
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_messages_prompt_ends_where_the_server_begins_to_generate(tokenizer, write_rows):
    (example,) = read_dataset(write_rows([{"messages": CHAT}]), tokenizer, 100).examples
    served = tokenizer.apply_chat_template(CHAT[:-1], add_generation_prompt=True)["input_ids"]
    assert list(example.prompt_ids) == list(served)
    # The template's line break after the end token is never generated.
    assert tokenizer.decode(example.answer_ids) == "yo<|end|>"


def test_messages_train_only_the_last_answer(tokenizer, write_rows):
    (example,) = read_dataset(write_rows([{"messages": [*CHAT, *CHAT]}]), tokenizer, 200).examples
    assert tokenizer.decode(example.answer_ids) == "yo<|end|>"
    assert tokenizer.decode(example.prompt_ids).count("yo") == 1


def test_too_long_rows_are_counted_not_cut(tokenizer, write_rows):
    rows = [{"prompt": "ab", "completion": "c"}, {"prompt": "ab" * 20, "completion": "c"}]
    dataset = read_dataset(write_rows(rows), tokenizer, 10)
    assert (len(dataset.examples), dataset.num_too_long) == (1, 1)
    with pytest.raises(TrainingError, match="all 2 rows"):
        read_dataset(write_rows(rows), tokenizer, 2)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "either prompt and completion"),
        ('{"prompt": "a"}', "must both be strings"),
        ('{"prompt": "a", "completion": 3}', "must both be strings"),
        ('{"prompt": "a", "completion": " "}', "completion is empty"),
        ('{"prompt": "", "completion": "b"}', "prompt is empty"),
        ('{"prompt": "a", "completion": "b", "messages": []}', "either prompt and completion"),
        ('{"messages": "a"}', "need a role"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "need a role"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "last message must be"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}', "answer is empty"),
    ],
)
def test_bad_line_is_named_with_its_number(tokenizer, tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"prompt": "a", "completion": "b"})
    path.write_text(f"{good}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=rf"rows.jsonl line 3: .*{reason}"):
        read_dataset(path, tokenizer, 100)


def test_unreadable_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(TrainingError, match="can't be read"):
        read_dataset(tmp_path / "absent.jsonl", tokenizer, 100)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(TrainingError, match="holds no rows"):
        read_dataset(empty, tokenizer, 100)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b"\xe9\n")
    with pytest.raises(TrainingError, match="not UTF-8"):
        read_dataset(latin, tokenizer, 100)


def test_split_keeps_equal_prompts_on_one_side_and_depends_on_the_seed(tokenizer, write_rows):
    rows = [{"prompt": chr(97 + i % 20), "completion": str(i)} for i in range(60)]
    dataset = read_dataset(write_rows(rows), tokenizer, 100)
    train, held_out = split_dataset(dataset, 0.25, 1)
    assert len(train.examples) + len(held_out.examples) == 60
    assert not {e.prompt_ids for e in train.examples} & {e.prompt_ids for e in held_out.examples}
    assert split_dataset(dataset, 0.25, 1) == (train, held_out)
    assert split_dataset(dataset, 0.25, 2) != (train, held_out)


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_labels_only_answers_and_shifts_them_by_one(tokenizer, write_rows, pairs, side):
    examples = read_dataset(write_rows(pairs), tokenizer, 100).examples
    batch = collate(examples, 0, side)
    for row, example in enumerate(examples):
        is_token = batch.attention_mask[row] == 1
        tokens, labels = batch.input_ids[row][is_token].tolist(), batch.labels[row][is_token].tolist()
        assert (*tokens, example.answer_ids[-1]) == example.prompt_ids + example.answer_ids
        assert labels[: len(example.prompt_ids) - 1] == [IGNORED] * (len(example.prompt_ids) - 1)
        assert tuple(labels[len(example.prompt_ids) - 1 :]) == example.answer_ids
        assert batch.position_ids[row][is_token].tolist() == list(range(len(tokens)))
    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    assert batch.prompt_lengths == tuple(len(example.prompt_ids) for example in examples)


def test_epoch_order_covers_every_row_once_with_similar_lengths_together():
    lengths = [(7 * i) % 50 + 1 for i in range(64)]
    order = epoch_order(lengths, 4, seed=3, epoch=0)
    assert sorted(index for batch in order for index in batch) == list(range(64))
    spread = max(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in order)
    assert spread < 10
    assert order == epoch_order(lengths, 4, seed=3, epoch=0)
    assert order != epoch_order(lengths, 4, seed=3, epoch=1)
    assert order != epoch_order(lengths, 4, seed=4, epoch=0)


def test_prompt_without_chat_template_is_refused(tokenizer, write_rows):
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    with pytest.raises(TrainingError, match="no chat template"):
        tokenize_prompt(bare, CHAT[:1])
    with pytest.raises(TrainingError, match=r"line 1: .*no chat template"):
        read_dataset(write_rows([{"messages": CHAT}]), bare, 100)
