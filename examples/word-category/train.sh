#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
exec reft-train --data data/train.jsonl --output word-category.safetensors \
  --layers "6;10;14;18;22" --low-rank-dimension 8 --positions f3+l4 \
  --epochs 3 --lr 2e-3 --batch-size 32 --precision bfloat16 \
  --name word-category --license WordNet \
  --description "Names the kind of thing an English noun is: action, animal, artifact, body, food, person, plant or substance." \
  --prompt-template "The word {word} means a kind of" "$@"
