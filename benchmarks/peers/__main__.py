"""How fast is our server, and is it with mixed interventions as fast as others are on the bare base model?

Question: output tokens/s of 1, 8 and 32 requests of 128 + 64 tokens, all at once, greedy, streamed over HTTP.
Baselines, one comparison each: `hf` (HF `generate`, one static batch without HTTP), `peft` (the same with a LoRA per
row), `pyreft` (one set per batch), `llama_cpp` (its server; plain, in float16, with a control vector), `vllm` (its CPU
build, compiled; base, and LoRAs mixed), `weights` (our own server with smaller weights). Each is run as its makers ship
it, in an environment of its own (`make bench-peers`). Rounds are paired (A B C A B C …): in each, one after the other
runs the job while all others are stopped, with prompts of its own; ratios are taken within a round.
Ceiling: weights only, at the machine's measured matrix product and memory read rates.
"""

from __future__ import annotations

import signal
import sys

from benchmarks.options import make_options, make_parser
from benchmarks.peers.compare import compare
from benchmarks.peers.contenders import COMPARISONS
from benchmarks.peers.environments import MissingPeerError


def main() -> None:
    """Run one comparison, print, and keep the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("peer", choices=tuple(COMPARISONS))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with us
    try:
        compare(args.peer, make_options(args))
    except MissingPeerError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
