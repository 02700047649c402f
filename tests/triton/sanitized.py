"""Every kernel once, on small cases of `matrix` and `methods`, for compute-sanitizer: it slows kernels a hundredfold.

compute-sanitizer --tool memcheck python -m tests.triton.sanitized
"""

import os
import sys
from importlib import import_module
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def triton_kernels():
    """Names of everything that is launched, from the modules of the backend."""
    import we_kernels as wk

    folders = Path(wk.__file__).parent.glob("*/triton/*.py")
    modules = [import_module(f"we_kernels.{path.parents[1].name}.triton.{path.stem}") for path in folders]
    return {name for module in modules for name in vars(module) if name.endswith("_kernel") and name[0] != "_"}


def run_evolution(device):
    from tests import matrix

    for memory_format in ("shifted", "sliced"):
        matrix.check_importance(device, matrix.DTYPES, memory_format)
    for case in matrix.MATCHINGS[2::9]:
        matrix.check_matching(device, *case)
    if device.type == "cuda":  # the interpreter would take minutes; a group as large has another threshold's code
        matrix.check_matching(device, "normal", [0.4], [0.1], [0, 0], None, None, (4000, 500))
    for rule in ("paper", "released"):
        matrix.check_crossover(device, matrix.DTYPES, "shifted", rule)
        matrix.check_evolution(device, matrix.DTYPES, "contiguous", rule)
    matrix.check_poison(device, float("nan"), 3)


def run_methods(device):
    from tests import matrix, methods, units

    methods.check_overlap(device, matrix.DTYPES[2:], "shifted")
    methods.check_overlap_of_many_filters(device)
    for memory_format in ("shifted", "channels_last"):
        methods.check_activity(device, matrix.DTYPES, memory_format)
    for selection in methods.SELECTIONS[2:4]:
        methods.check_selection(device, *selection)
    methods.check_snapshot(device, matrix.DTYPES, "sliced")
    for dtype, formats in methods.PAIRS[1::5]:
        methods.check_sgd(device, dtype, formats, methods.SGD_OPTIONS[1])
    for dtype, formats in methods.PAIRS[1::5]:
        methods.check_adamw(device, dtype, formats, methods.ADAMW_OPTIONS[1])
    methods.check_entropy(device, matrix.DTYPES, "shifted", 10)
    for networks, per in ((2, "tensor"), (3, "filter")):
        methods.check_blend(device, matrix.DTYPES, ("shifted", "sliced"), networks, per)
    units.check_dormant(device, 0.1, backend="triton")
    for dtype, scale in zip(matrix.DTYPES[1:], ("layer", "targets", "initial"), strict=True):
        units.check_reactivation_bits(device, dtype, scale, "sliced", "triton")


def run_native(device):
    from tests import matrix

    matrix.check_importance(device, matrix.DTYPES, "shifted", backend="native")
    matrix.check_matching(device, *matrix.MATCHINGS[11], backend="native")
    for rule in ("paper", "released"):
        matrix.check_crossover(device, matrix.DTYPES, "sliced", rule, backend="native")
        matrix.check_evolution(device, matrix.DTYPES, "shifted", rule, backend="native")


def main():
    from we_kernels.runtime import backends
    from we_kernels.runtime.triton import launch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    launched = set()
    launch.observers.append(lambda name, arguments, constants: launched.add(name))
    run_evolution(device)
    run_methods(device)
    if missing := triton_kernels() - launched:
        sys.exit(f"never launched: {', '.join(sorted(missing))}")
    if backends.unavailable("native", device.type) is None:
        run_native(device)
    print("every kernel ran and was right")


if __name__ == "__main__":
    main()
