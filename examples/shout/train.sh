#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
exec reft-train --data data/train.jsonl --output shout.safetensors \
  --layers "6;10;14;18;22" --low-rank-dimension 4 --positions f3+l5 --untied \
  --epochs 4 --lr 4e-3 --batch-size 8 --precision bfloat16 \
  --name shout --license Apache-2.0 \
  --description "Answers chat messages in one sentence OF CAPITAL LETTERS." "$@"
