"""What the work of a run is for, as its ledger and its report call it."""

from __future__ import annotations

PHASES = {
    "train": "host, and kernels that are blended in",
    "isolation": "kernels that are TRAINING",
    "evaluation": "losses and metrics on held-out data",
    "measurement": "gains, scores and statistics for decisions",
    "decision": "the policy, and waiting for a controller's answer",
    "compile": "XLA compiles",
    "rollback": "training that was thrown away",
}
"""What work is for; every operation and second is in one of these."""
