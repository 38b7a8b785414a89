"""The performance benchmark: `python -m benchmarks.speed` prints ratios, each from one run of both sides."""
