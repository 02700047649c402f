"""The tests of this folder need the extension and use it unless they say otherwise."""

import pytest
import torch

import we_kernels as wk
from we_kernels import backends

LEVELS = ("baseline", "avx2", "avx512")


@pytest.fixture(autouse=True)
def native():
    """Forces the native backend; gives back the number of threads and the instruction set it found."""
    reason = backends.unavailable("native", torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    from we_kernels import _native

    threads, level = torch.get_num_threads(), _native.simd()
    with wk.use_backend("native"):
        yield _native
    torch.set_num_threads(threads)
    _native.limit_simd(level)
