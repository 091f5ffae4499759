"""The benchmarks that score a model, one file each; the file's docstring is the benchmark's protocol."""
