"""``python -m tests.mutation.check``: break the code, one line at a time; every fault must fail the tests."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PARTS = (
    "we_kernels/evolution/reference/",
    "we_kernels/evolution/triton/",
    "we_kernels/evolution/operators.py",
    "csrc/cpu/",
    "python/",
)


def copy_tree(target: Path) -> None:
    """The packages, the tests and what they need, extension included."""
    for name in ("we_kernels", "python", "tests", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)


def run_tests(tree: Path, tests: str) -> bool:
    """Whether the tests pass in ``tree``."""
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'python'}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--all", *shlex.split(tests)]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True).returncode == 0


def build(tree: Path) -> None:
    """The extension from the tree's sources, next to its package."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    # A fault may leave a variable unused.
    environment = os.environ | {"WE_KERNELS_NATIVE": "on", "WE_KERNELS_CUDA": "off", "WE_KERNELS_WERROR": "OFF"}
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)


def survives(tree: Path, mutant: Mutant) -> bool:
    """Whether the tests miss the fault. The file is restored."""
    path = tree / mutant.path
    original = path.read_text()
    if original.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.path}: {mutant.old!r} occurs {original.count(mutant.old)} times, must be once")
    path.write_text(original.replace(mutant.old, mutant.new))
    native = mutant.path.startswith("csrc") and "cuda" not in mutant.path  # its tests compile the CUDA part
    try:
        if native:
            build(tree)
        return run_tests(tree, mutant.tests)
    finally:
        path.write_text(original)
        if native:
            build(tree)


def main() -> int:
    """Prints one line per mutant; 1 if any survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only mutants whose path contains this")
    parser.add_argument("--sample", action="store_true", help="the first mutant of each part of the code")
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if options.only in mutant.path]
    if options.sample:
        mutants = [next(mutant for mutant in mutants if mutant.path.startswith(part)) for part in PARTS]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        for mutant in mutants:
            alive = survives(tree, mutant)
            survivors += alive
            verdict = "SURVIVED" if alive else "killed"
            print(f"{verdict:8}  {mutant.path}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}", flush=True)
        for tests in {mutant.tests for mutant in mutants}:
            if not run_tests(tree, tests):
                raise SystemExit(f"the unbroken code fails {tests}: nothing was shown")
    print(f"{len(mutants) - survivors} of {len(mutants)} faults noticed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
