"""Importing the packages needs no GPU, no Triton and no extension, takes little, and creates no CUDA context."""

import sys

import pytest

import we_kernels as wk
import weight_evolution
from tests.packaging import builds
from weight_evolution import api

SITE = f"{builds.ROOT}:{builds.ROOT / 'python'}"
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""
USE = """
import torch, we_kernels as wk
from weight_evolution import WeightEvolution
assert wk.filter_importance(wk.FilterBank([torch.ones(3, 2, 5)])).tolist() == [5.0] * 3
wk.info()
assert not torch.cuda.is_initialized(), "a CUDA context exists"
"""


@pytest.mark.parametrize(
    "blocked", [(), ("triton",), ("we_kernels._native",), ("triton", "we_kernels._native")], ids=str
)
def test_import(blocked, tmp_path):
    done = builds.run(sys.executable, "-c", BLOCK.format(blocked=blocked) + USE, cwd=tmp_path, PYTHONPATH=SITE)
    assert done.returncode == 0, done.stdout


MEASURE = """
import sys, time

def cpu_time_of(load):
    start = time.process_time()
    load()
    return time.process_time() - start

def torch():
    import torch

def ours():
    import we_kernels, weight_evolution
    assert weight_evolution.WeightEvolution

theirs = cpu_time_of(torch)
before = set(sys.modules)
share = cpu_time_of(ours) / theirs
print(sorted(name for name in {*sys.modules} - before if name.split(".")[0] not in ("we_kernels", "weight_evolution")))
print(share)
"""


def test_import_loads_nothing_but_torch_and_takes_a_fraction_of_its_time(tmp_path):
    """Nor says anything: PyTorch's tools for C++ extensions search for CUDA and print where it is."""
    settings = {"PYTHONPYCACHEPREFIX": str(tmp_path / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    folders = (builds.ROOT / "we_kernels", builds.ROOT / "python")
    done = builds.run(sys.executable, "-m", "compileall", "-q", *folders, cwd=tmp_path, **settings)  # as pip does
    assert done.returncode == 0, done.stdout
    others, share = builds.python(MEASURE, SITE, tmp_path, **settings).splitlines()
    assert others == "[]"
    assert float(share) < 0.25, "0.07 on an idle AMD EPYC: 0.05 of 0.75 s"


@pytest.mark.parametrize("module", ["weight_evolution", "weight_evolution.command"])
@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["no-command"]])
def test_help_needs_no_torch(arguments, module, tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["weight-evolution", *{arguments}]
try:
    if {module == "weight_evolution"}:
        runpy.run_module("weight_evolution", run_name="__main__")
    else:
        from weight_evolution.command import main
        sys.exit(main())
except SystemExit as stop:
    status = stop.code
assert not {{"torch", "numpy"}} & {{*sys.modules}}
print(status)
"""
    *said, status = builds.python(code, SITE, tmp_path).splitlines()
    assert status == ("2" if arguments == ["no-command"] else "0")
    if arguments == ["--version"]:
        assert said == [wk.__version__]
    else:
        assert said[0].startswith("weight-evolution: error: " if status == "2" else "usage: weight-evolution")


def test_the_package_has_the_names_of_its_api():
    """Though it looks them up when they are used."""
    assert all(getattr(weight_evolution, name) is getattr(api, name) for name in api.__all__)
    assert weight_evolution.__all__ == api.__all__
    assert {*api.__all__} <= {*dir(weight_evolution)}
    assert weight_evolution.grafting.FilterGrafting is weight_evolution.FilterGrafting
    with pytest.raises(AttributeError, match="module 'weight_evolution' has no attribute 'EvolutionWeight'"):
        _ = weight_evolution.EvolutionWeight
