"""Paired comparisons with other software, one command each: `python -m benchmarks.peers PEER`."""
