"""Every kernel once, on small cases of `matrix`: for compute-sanitizer, which slows kernels a hundredfold.

compute-sanitizer --tool memcheck python tests/triton/sanitized.py
"""

import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def main():
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    import matrix

    import we_kernels as wk
    from we_kernels import backends

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    for memory_format in ("shifted", "sliced"):
        matrix.check_importance(device, matrix.DTYPES, memory_format)
    for case in matrix.MATCHINGS[2::9]:
        matrix.check_matching(device, *case)
    for rule in ("paper", "released"):
        matrix.check_crossover(device, matrix.DTYPES, "shifted", rule)
        matrix.check_evolution(device, matrix.DTYPES, "contiguous", rule)
    matrix.check_poison(device, float("nan"), 3)
    if backends.unavailable("native", device) is None:
        with wk.use_backend("native"):
            bank = matrix.bank_of(matrix.on(matrix.make_cases(matrix.DTYPES, "shifted", 3), device), 2)
            counter = torch.zeros(2, dtype=torch.int32, device=device)
            options = {"rate": 0.5, "local_ratio": [0.6, None], "starvation": counter, "starvation_limit": 2.0}
            assert int((wk.evolve_(bank, **options) >= 0).sum()) > 5
    print("every kernel ran and was right")


if __name__ == "__main__":
    main()
