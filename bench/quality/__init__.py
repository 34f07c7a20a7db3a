"""The paper's experiments on our models: `make quality`, or `python -m bench.quality --help`."""
