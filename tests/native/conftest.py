"""The tests of this folder need the extension and use it unless they say otherwise."""

import pytest
import torch

import we_kernels as wk
from we_kernels.runtime import backends

LEVELS = ("baseline", "avx2", "avx512")


@pytest.fixture(autouse=True)
def native(poisoned):
    """Forces the native backend, with threads even for small banks; leaves all settings as it found them."""
    reason = backends.unavailable("native", "cpu")
    if reason:
        pytest.skip(reason)
    from we_kernels import _native

    threads, level, limit = torch.get_num_threads(), _native.simd(), _native.wake_threads_from(1 << 16)
    with wk.use_backend("native"):
        yield _native
    torch.set_num_threads(threads)
    _native.limit_simd(level)
    _native.wake_threads_from(limit)
