"""The benchmarks, one file each; the protocol of each is its docstring."""
