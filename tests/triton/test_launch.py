"""The one helper that launches kernels: device, grid, and the way past Triton's own look-up."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import we_kernels as wk
from tests.processes import run_module
from we_kernels.runtime.transfer import Place
from we_kernels.runtime.triton import launch

PACKAGE = Path(wk.__file__).parent


class Kernel:
    """Notes where and how it is launched; compiles to nothing, like an interpreted kernel."""

    __name__ = "kernel"
    arg_names = ("x", "SIZE")

    def __init__(self, seen, current):
        self.seen, self.current = seen, current

    def __getitem__(self, grid):
        return lambda *args, **options: self.seen.append((grid, self.current[-1], args))


@pytest.fixture
def current(monkeypatch):
    """Indices of the devices that were made current, innermost last."""
    stack = [0]

    @contextmanager
    def device(which):
        stack.append(which.index)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: stack[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    return stack


@pytest.mark.parametrize("index", [0, 1])
def test_launches_on_the_device_it_is_given(current, index):
    seen = []
    launch.launch(Kernel(seen, current), 70_000, Place(torch.device("cuda", index), 7, False), 5, SIZE=3)
    assert seen == [((70_000,), index, (5,))], "one grid dimension, whatever its size"
    assert current == [0]


def test_a_grid_beyond_cuda_s_limit_is_refused(current):
    seen = []
    with pytest.raises(ValueError, match="split it"):
        launch.launch(Kernel(seen, current), 2**31, Place(torch.device("cuda", 0), 7, False), 5, SIZE=3)
    launch.launch(Kernel(seen, current), 0, Place(torch.device("cuda", 0), 7, False), 5, SIZE=3)
    assert seen == []


def test_a_parameter_that_triton_s_launch_overwrites_is_refused():
    def some_kernel(params, SIZE):
        pass

    with pytest.raises(ValueError, match=r"some_kernel: rename the parameters \['params'\]"):
        launch.kernel(some_kernel)


def test_only_the_helper_launches():
    """``kernel[grid](...)`` is written nowhere else."""
    found = {
        path.name
        for path in PACKAGE.glob("*/triton/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    }
    assert found == {"launch.py"}


def test_second_launches_pass_what_first_ones_do(tmp_path):
    """With Triton's compiler but no GPU: a driver that notes what it is asked to launch."""
    done = run_module("tests.triton.launch_without_gpu", TRITON_INTERPRET=None, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kernels" in done.stdout
