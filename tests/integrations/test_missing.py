"""What holds without the libraries: errors that name the extra, and imports that leave them alone."""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"}


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_missing_library(library):
    code = f"""
import sys
sys.modules[{library!r}] = None  # as if it were not installed
try:
    import weight_evolution.integrations.{library}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert f"weight_evolution.integrations.{library} needs" in done.stdout
    assert f"pip install '.[{library}]' in a clone" in done.stdout


def test_the_package_imports_none_of_them():
    code = """
import sys
from weight_evolution.api import *
libraries = {"lightning", "transformers", "accelerate", "torchvision", "timm", "weight_evolution.integrations"}
print(sorted(libraries & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout == "[]\n"
