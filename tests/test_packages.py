"""Files of two folders may share a name: pytest tells them apart only where every folder is a package."""

import pytest

from tests.processes import ROOT


@pytest.mark.parametrize("package", ["tests", "benchmarks", "experiments"])
def test_every_folder_of_modules_is_a_package(package):
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert ROOT / package in folders
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
