"""Evolves twice with compiled kernels and a driver that launches nothing.

    python tests/triton/launch_without_gpu.py [number of steps to time]

The second time, kernels are launched past Triton's look-up: checks that the driver is asked for the same. With a
number, it also prints the host's time for a step on ResNet-50's convolutions (less what CUDA itself takes).
"""

import sys
import time
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

import we_kernels as wk
from we_kernels.backends import triton as backend

launched = []


class Launcher:
    def __init__(self, source, metadata):
        self.name = metadata.name

    def __call__(self, x, y, z, stream, function, packed_metadata, launch_metadata, enter, leave, *arguments):
        launched.append((self.name, (x, y, z), stream, function, packed_metadata, arguments))


class Utils:
    loaded = 0

    def load_binary(self, *arguments):
        self.loaded += 1
        found = "module", self.loaded, 32, 0, 1024
        return found[:4] if triton.__version__ < "3.4" else found

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}


class Driver:
    utils = Utils()
    launcher_cls = Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 11

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def described(launch):
    """Tensors by dtype and shape: their addresses are new in every step."""
    *asked, arguments = launch
    return asked, [(a.dtype, a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]


def compare_launches():
    bank = wk.FilterBank([torch.randn(20, 3, 3, 3), torch.randn(9, 4, 1, 1)], groups=[0, 1])
    counter, rates = torch.zeros(2, dtype=torch.int32), torch.tensor([0.5, 0.3], dtype=torch.float64)
    looked_up = []
    run = triton.runtime.jit.JITFunction.run
    triton.runtime.jit.JITFunction.run = lambda self, *args, **kw: looked_up.append(self) or run(self, *args, **kw)
    for _ in range(2):
        wk.evolve_(bank, rate=rates, starvation=counter, starvation_limit=1.0)
    triton.runtime.jit.JITFunction.run = run
    first, second = launched[:4], launched[4:]
    assert len(first) == len(second) == len(looked_up) == 4, (len(launched), len(looked_up))
    for one, two in zip(map(described, first), map(described, second), strict=True):
        assert one == two, f"{one}\n{two}"
    print("4 kernels, launched alike with and without Triton's look-up")


def print_host_time(steps):
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from case import Case

    torch.set_num_threads(1)
    case = Case("resnet50")
    rates = torch.tensor(case.rates, dtype=torch.float64)
    for _ in range(3):
        start = time.process_time()
        for _ in range(steps):
            wk.evolve_(case.bank, rate=rates, starvation=case.starvation, starvation_limit=case.starvation_limit)
        print(f"{1e6 * (time.process_time() - start) / steps:.0f} us of CPU time per step")


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    backend.unavailable = lambda device: None
    with wk.use_backend("triton"):
        compare_launches()
        if len(sys.argv) > 1:
            print_host_time(int(sys.argv[1]))
