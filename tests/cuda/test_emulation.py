"""The CUDA kernels compiled as C++ and run on the CPU, a fiber per CUDA thread, with undefined behaviour trapped."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import cuda_cases
import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("emulation") / "emulated.so"
    sources = [*sorted((CSRC / "cuda").glob("*.cu")), CSRC / "tests/cuda_emulation/exports.cpp"]
    flags = "-x c++ -std=c++20 -O1 -shared -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -fsanitize=undefined"
    includes = [f"-I{CSRC / 'tests/cuda_emulation'}", f"-I{CSRC}"]
    subprocess.run(
        [compiler, *flags.split(), "-fno-sanitize-recover=undefined", *includes, *sources, "-o", library], check=True
    )
    return ctypes.CDLL(str(library))


def importance(emulated, weights, dims, reverse=False):
    pointers, layers, output = cuda_cases.tables(weights, dims)
    address = [ctypes.c_void_p(table.data_ptr()) for table in (pointers, layers, output)]
    sizes = [ctypes.c_int64(len(layers)), ctypes.c_int64(len(output))]
    assert emulated.emulated_importance(*address[:2], *sizes, address[2], ctypes.c_bool(reverse)) == 0
    return output


def test_importance(emulated):
    weights, dims = cuda_cases.weights()
    result = importance(emulated, weights, dims)
    cuda_cases.check(result, weights, dims)
    assert torch.equal(result, importance(emulated, weights, dims, reverse=True)), "depends on the order of threads"


def test_importance_of_values_that_are_not_finite(emulated):
    weights = [torch.ones(5, 67), torch.ones(3, 20000, dtype=torch.bfloat16), torch.ones(2, 9, dtype=torch.float16)]
    weights[0][3, 66] = torch.nan
    weights[1][1, 19999] = -torch.inf
    weights[2][0] = 60000.0
    result = importance(emulated, weights, [0, 0, 0])
    assert result[[3]].isnan()
    assert result[[6]].isinf()
    assert result[[0, 1, 2, 4, 5, 7, 9]].tolist() == [1.0] * 7
    assert result[8] == 60000.0, "the sum is beyond float16's range"


def test_importance_with_empty_layers(emulated):
    weights = [torch.ones(0, 4), torch.full((3, 5), 2.0), torch.ones(0, 2), torch.ones(2, 7), torch.ones(0, 1)]
    assert importance(emulated, weights, [0] * 5).tolist() == [2.0] * 3 + [1.0] * 2
    assert len(importance(emulated, weights[:1], [0])) == 0
