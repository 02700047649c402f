"""Importing the packages needs no GPU, no Triton and no extension, and creates no CUDA context."""

import sys

import pytest

from tests.packaging import builds

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""
USE = """
import torch, we_kernels as wk, weight_evolution
assert wk.filter_importance(wk.FilterBank([torch.ones(3, 2, 5)])).tolist() == [5.0] * 3
wk.info()
assert not torch.cuda.is_initialized(), "a CUDA context exists"
"""


@pytest.mark.parametrize(
    "blocked", [(), ("triton",), ("we_kernels._native",), ("triton", "we_kernels._native")], ids=str
)
def test_import(blocked, tmp_path):
    code = BLOCK.format(blocked=blocked) + USE
    site = f"{builds.ROOT}:{builds.ROOT / 'python'}"
    done = builds.run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=site)
    assert done.returncode == 0, done.stdout


def test_import_loads_nothing_heavy(tmp_path):
    """Nor says anything: PyTorch's tools for C++ extensions print where CUDA is."""
    code = (
        "import sys, torch; before = set(sys.modules); import we_kernels, weight_evolution; "
        "print({'triton', 'torch.utils.cpp_extension', 'matplotlib'} & {*sys.modules} - before)"
    )
    site = f"{builds.ROOT}:{builds.ROOT / 'python'}"
    assert builds.python(code, site, tmp_path) == "set()"
