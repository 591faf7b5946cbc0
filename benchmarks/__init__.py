"""Benchmarks: each states its question, baseline and ceiling, pairs its runs, and keeps its figures in results/."""
