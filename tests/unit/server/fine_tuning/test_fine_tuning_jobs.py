"""Jobs with real training processes: what they store, how they end, and what a restart makes of them."""

from __future__ import annotations

import csv

from reft_interventions import load
from tests.unit.server.fine_tuning.conftest import ROWS, Lab, ended, job_request, run, until, upload


def test_job_trains_and_stores_its_set_beside_one_that_the_trainer_refuses(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running(max_running=2) as (tuning, registry):
            wrong = await upload(tuning, [*ROWS, {"messages": [{"role": "assistant", "content": "My secret"}] * 2}])
            refused = await tuning.create_job(job_request(wrong), "acme/tiny")
            data, held_out = await upload(tuning), await upload(tuning, [{"prompt": "m is", "completion": " mm"}])
            request = job_request(data, {"patience": 1}, validation_file=held_out.id, seed=7, metadata={"team": "a"})
            created = await tuning.create_job(request, "acme/tiny")
            assert created.status == "queued"
            record = await ended(tuning, created.id)
            assert record.error is None
            assert record.status == "succeeded"
            assert record.intervention is not None
            stored = registry.get("echo")
            assert (stored.version, stored.content_hash) == (1, record.intervention.content_hash)
            with registry.open(stored) as file:
                manifest = load(file.name).manifest
            assert manifest.base_model.id == "acme/tiny"
            assert manifest.training is not None
            assert manifest.training["options"]["seed"] == 7
            assert len(lab.engine.tried) == 1
            assert (record.trained_tokens or 0) > 0
            results = tuning.files.get(record.result_file or "")
            rows = list(csv.DictReader(tuning.files.path(results).read_text().splitlines()))
            assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5", "6"]
            assert all(float(row["train_loss"]) > 0 for row in rows[1:])
            assert float(rows[0]["valid_loss"]) > 0
            messages = [event.message for event in tuning.jobs.events(created.id)]
            assert messages[-1] == f"Created fine-tuning job: {created.id}"
            assert messages[1] == "New fine-tuned model created: echo@1"
            assert messages[0] == "The job has successfully completed"
            folder = tuning.jobs.folder(created.id)
            kept = {"job.json", "events.jsonl", "options.json", "stderr.txt"}
            await until(lambda: {path.name for path in folder.root.iterdir()} == kept)
            failed = await ended(tuning, refused.id)
            assert failed.error is not None
            assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
            assert f"{wrong.id}.jsonl line 13" in failed.error.message
            assert "secret" not in failed.error.message
            assert str(lab.root) not in failed.error.message

    run(scenario())
