"""The thread pool under a caller that forks, calls from several threads or asks for another instruction set."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import we_kernels as wk
from tests.processes import environment


def make_weights():
    # Enough in all for the pool to be used, each too small for torch's own (which hangs in a forked child).
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(32, 30, 3, 3, generator=generator) for _ in range(30)]


def evolve(weights):
    donor = wk.evolve_(wk.FilterBank(weights), rate=0.4, local_ratio=1.0).donor
    return [donor, *weights]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def count_threads():
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    torch.set_num_threads(3)
    expected = evolve(make_weights())
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for threads it does not have
        try:
            code = 0 if same(evolve(make_weights()), expected) and count_threads() > 1 else 1
        except BaseException:
            code = 2
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert same(evolve(make_weights()), expected)


def test_several_threads_evolve_at_once():
    torch.set_num_threads(2)
    expected = evolve(make_weights())
    failures = []

    def work():
        with wk.use_backend("native"):  # a new thread forces nothing
            failures.extend(i for i in range(20) if not same(evolve(make_weights()), expected))

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failures == []


def test_the_number_of_threads_may_change_from_call_to_call():
    results = []
    for threads in (1, 4, 2, 7, 1, 3):
        torch.set_num_threads(threads)
        results.append(evolve(make_weights()))
    assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_the_environment_limits_the_instruction_set(native, level):
    order = ["baseline", "avx2", "avx512"]
    code = f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("_native", {native.__file__!r})  # alone: the package imports PyTorch
module = module_from_spec(spec)
spec.loader.exec_module(module)
print(module.simd())
"""
    settings = environment(WE_KERNELS_SIMD=level)
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == min(level, native.simd(), key=order.index)


def test_build_info_names_compiler_and_instruction_set(native):
    info = wk.info()["native extension"]
    assert native.compiler() in info
    assert native.simd() in info
