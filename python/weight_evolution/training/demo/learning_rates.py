"""Adam's learning rates for random labels, and what they were chosen from."""

from __future__ import annotations

GRID = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
TUNING_SEEDS = (100,)
"""Not of those that the demo shows."""
CHOSEN = {"baseline": 0.001, "weight evolution": 0.0005, "ReDo": 0.002, "reactivation": 0.008}
"""For each method the best of `GRID` by the mean accuracy over the last half of the tasks, as
``python -m experiments.demo_learning_rates`` prints them. On an AMD EPYC, in %:

    baseline          22.9  30.6  21.4  12.8  15.6  12.3
    weight evolution  18.0  16.3  12.2  12.3  12.1  12.3
    ReDo              23.9  34.2  42.4  30.0  19.2  11.5
    reactivation      20.7  26.7  38.6  51.4  59.5  55.0
"""
