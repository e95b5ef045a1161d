"""Parts of `benchmarks/fuzzing.py`: mutators, kinds of files, generated graphs, workers."""
