"""What growth is worth: benchmarks with controls, whose results make docs/evidence.md.

A benchmark is a module with `run() -> Benchmark`, entered in `__main__.BENCHMARKS`. `results` is the form of what it
gives and its JSON file, `report` and `plots` make the page from those files alone.
"""
