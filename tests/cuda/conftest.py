"""The CUDA part of the extension compiled as C++: its kernels run on the CPU, with undefined behaviour trapped."""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import we_kernels as wk
from tests import availability
from we_kernels.evolution import cuda
from we_kernels.operator import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "csrc/tests/cuda_emulation"
FLAGS = f"-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas -I{EMULATION} -I{ROOT}/csrc"
KERNEL_FLAGS = "-O1 -ffp-contract=off -fsanitize=undefined -fno-sanitize-recover=undefined -x c++"
BINDING_FLAGS = '-O0 -DWE_KERNELS_CUDA_ARCHITECTURES="emulated"'


@pytest.fixture(scope="session")
def library():
    """Path of the compiled module; it is kept for as long as the sources stay the same."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    pybind11 = pytest.importorskip("pybind11")
    kernels = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    kernels += [ROOT / "csrc/cuda/plan_tables.cpp", ROOT / "csrc/cpu/bank.cpp", EMULATION / "emulation.cpp"]
    contents = [path.read_bytes() for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()]
    key = hashlib.sha256(b"\0".join([*contents, Path(__file__).read_bytes(), pybind11.__file__.encode()])).hexdigest()
    built = ROOT / "build" / "cuda-emulation" / key[:16] / f"emulated_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    work = built.parent / str(os.getpid())  # another process may build at the same time
    work.mkdir()
    python = f"-isystem {sysconfig.get_path('include')} -isystem {pybind11.get_include()}"

    def compile_one(source):
        extra = KERNEL_FLAGS if source in kernels else f"{BINDING_FLAGS} {python}"
        target = work / f"{source.name}.o"
        command = [compiler, *FLAGS.split(), *shlex.split(extra, posix=False), "-c", source, "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [EMULATION / "module.cpp", *kernels]))
    subprocess.run([compiler, "-shared", "-fsanitize=undefined", *objects, "-o", work / built.name], check=True)
    (work / built.name).replace(built)
    shutil.rmtree(work)
    return built


@pytest.fixture
def emulated(library, monkeypatch, poisoned):
    """The module. The native backend uses it for CPU tensors, and only it; outputs and scratch are poisoned first."""
    spec = importlib.util.spec_from_file_location("emulated_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_order("forward", 0)
    module.set_driver(0, 2, 0, False)
    module.take_launches()
    module.guarded = []

    @contextmanager
    def guard(device):
        module.guarded.append(device)
        yield

    availability.pretend(monkeypatch, lambda name, device: None)
    for name in ("filter_importance", "match_filters", "crossover_", "evolve_"):
        OPERATORS[name]._chosen["native", "cpu"] = "native", getattr(cuda, name)
    monkeypatch.setattr(cuda, "on", guard)
    monkeypatch.setattr(cuda, "module", module)
    with wk.use_backend("native"):
        yield module
