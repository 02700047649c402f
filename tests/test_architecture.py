"""docs/architecture.md names every module, in its folder, and none that is not there."""

import re
from collections import defaultdict

import pytest

from tests.processes import ROOT

DOCUMENT = ROOT / "docs" / "architecture.md"
PACKAGES = ["python/weight_evolution", "we_kernels"]
"""Folders that are held to the document."""


def listed(text, package):
    """Folder -> modules that the plan in ``text`` lists on the folder's line, or below it and further in."""
    folders = []  # (indentation, path), from the package down to where a line is
    found = defaultdict(set)
    for line in filter(str.strip, text.split("```")[1].splitlines()):
        indentation = len(line) - len(line.lstrip())
        folders = [(outer, path) for outer, path in folders if outer < indentation]
        name = line.split()[0]
        if name.endswith("/"):
            folders.append((indentation, "/".join([*(path for _, path in folders[-1:]), name[:-1]])))
        for _, path in folders[-1:]:
            found[path] |= set(re.findall(r"\b\w+\.py\b", line))
    return {path: names for path, names in found.items() if names and f"{path}/".startswith(f"{package}/")}


def written(package):
    """Folder -> its modules, without __init__.py."""
    found = defaultdict(set)
    for path in (ROOT / package).rglob("*.py"):
        if path.name != "__init__.py":
            found[path.parent.relative_to(ROOT).as_posix()].add(path.name)
    return dict(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_architecture_lists_the_true_files(package):
    assert listed(DOCUMENT.read_text(encoding="utf-8"), package) == written(package)


PLAN = """
```
 training loop
      |  call
      v
 outer/               what it is: not/a.py folder
   top.py   one;  other.py  two
   inner/         a folder
     deep.py
        more of it; late.py
   last.py    back in the outer folder
      |  an arrow
 other_package/
   else.py
```
"""


def test_modules_belong_to_the_folder_above_them():
    assert listed(PLAN, "outer") == {
        "outer": {"a.py", "top.py", "other.py", "last.py"},
        "outer/inner": {"deep.py", "late.py"},
    }
    assert listed(PLAN, "other_package") == {"other_package": {"else.py"}}
