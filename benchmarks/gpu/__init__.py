"""What the GPU path reaches of what the GPU can do: `python -m benchmarks.gpu`."""
