"""The evidence: PyTorch's own cases, ours and whole models, on XLA beside eager PyTorch. `make parity` runs all."""
