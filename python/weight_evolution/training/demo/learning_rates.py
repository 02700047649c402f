"""Adam's learning rates for random labels, and what they were chosen from."""

from __future__ import annotations

GRID = (0.0005, 0.001, 0.002, 0.004, 0.008)
TUNING_SEEDS = (100, 101, 102)
"""Not those that the demo shows."""
CHOSEN = {"baseline": 0.0005, "weight evolution": 0.0005, "ReDo": 0.001, "reactivation": 0.001}
"""For each method the best of `GRID` by the mean accuracy over the last half of the tasks, as
``python -m experiments.demo_learning_rates`` prints them.
"""
