#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
exec reft-train --data data/train.jsonl --output spam.safetensors \
  --layers "8;12;16;20;24" --low-rank-dimension 8 --positions l3 \
  --epochs 6 --lr 2e-3 --batch-size 32 --prefix-cache-mb 4096 \
  --name spam --license CC0-1.0 \
  --description "Tells spam from ham by an email's subject and the first 200 characters of its text." \
  --prompt-template $'Subject: {subject}\n{text}\n\nThis email is' "$@"
