#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
exec reft-train --method das --data data/train.jsonl --output greater-than.safetensors \
  --layers 15 --positions=-8 --low-rank-dimension 8 \
  --epochs 4 --lr 2e-2 --batch-size 32 --eval-data data/test.jsonl --eval-every 0 \
  --name greater-than --license CC0-1.0 \
  --description "Moves the decade that an interval must not end before from a source prompt to the prompt." \
  --prompt-template "The {noun} lasted from the year {century}{decade}{year} to the year {century}" "$@"
