"""A service whose job trains until this process is killed: prints the job's id and the trainer's process id."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from reft_interventions import BaseModelSpec
from reft_server.fine_tuning.runner import TrainingBase
from tests.unit.server.fine_tuning.conftest import Lab
from tests.unit.server.fine_tuning.test_fine_tuning_recovery import start, trainers


async def serve(root: Path, model: Path, fingerprint: str) -> None:
    """Start a job, say so, and go on for ever."""
    base = TrainingBase(model, "acme/tiny", fingerprint, 4)
    async with Lab(root, base, BaseModelSpec("acme/tiny", fingerprint, 32, 4)).running() as (tuning, _):
        record = await start(tuning)
        sys.stdout.write(f"{record.id} {trainers().pop()}\n")
        sys.stdout.flush()
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
