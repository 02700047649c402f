"""The GPU's tests by kernel: which group a test belongs to. A fault of a kernel ends the process of its group only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FILES = {"triton": "tests/triton/test_gpu*.py", "native": "tests/cuda/test_native*.py"}
"""Where tests that need a GPU are."""
MAIN = ("test_gpu", "test_native_cuda")
"""Files that are divided by `RULES`; others by the first word of their tests' names."""
RULES = (
    ("compiled", r"compiled"),
    ("large", r"huge|offsets|65535"),
    ("steps", r"whole_step|reported_later|model"),
    ("graphs", r"graph|stream|captur|wait|allocated|anew"),
    ("importance", r"importance"),
    ("matching", r"matching|counters|thresholds"),
    ("crossover", r"crossover"),
    ("evolution", r"evolution|bad_weight"),
)
"""Group and pattern of the test's name, the first that matches; "rest" for what matches none."""
START = ("importance", "matching", "crossover", "large", "compiled")
"""Groups that start first: the long ones, and those that compile what the others find compiled."""


def group_of(path: Path, function: str) -> str:
    """Every test belongs to exactly one group.

    Args:
        path: of the test's file; only its name counts.
        function: of the test, without its parameters.
    """
    backend = "native" if path.stem.startswith("test_native") else "triton"
    if path.stem not in MAIN:
        file = re.sub("^test_(gpu|native)_", "", path.stem)
        return f"{backend}-{file}-{function.split('_')[1]}"
    return f"{backend}-{next((group for group, pattern in RULES if re.search(pattern, function)), 'rest')}"


def groups(root: Path, backend: str) -> dict[str, list[Path]]:
    """Groups of one backend, those first that should start first, and the files of each.

    Args:
        root: of the repository.
        backend: "triton" or "native".
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob(FILES[backend])):
        for function in _test_functions(path):
            files = found.setdefault(group_of(path, function), [])
            if path not in files:
                files.append(path)
    places = {f"{backend}-{name}": place for place, name in enumerate(START)}
    return dict(sorted(found.items(), key=lambda item: places.get(item[0], len(places))))


def _test_functions(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
