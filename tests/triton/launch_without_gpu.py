"""Evolves twice with compiled kernels and a driver that launches nothing.

    python -m tests.triton.launch_without_gpu [number of steps to time]

The second time, kernels are launched past Triton's look-up: checks that the driver is asked for the same. With a
number, it also prints the host's time for a step on ResNet-50's convolutions (less what CUDA itself takes).
"""

import sys
import time

import torch
import triton
from triton.backends.compiler import GPUTarget

import we_kernels as wk
from we_kernels.runtime import backends
from we_kernels.runtime.transfer import Place
from we_kernels.runtime.triton import launch

STREAM = 11

launched = []


class Launcher:
    def __init__(self, source, metadata):
        self.name = metadata.name

    def __call__(self, x, y, z, stream, function, packed_metadata, launch_metadata, enter, leave, *arguments):
        if enter is not None:
            enter(launch_metadata)
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
        return STREAM

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def described(launch, given):
    """Tensors, whether passed as such or by address, by dtype and shape: their addresses are new in every step."""
    *asked, arguments = launch
    described = []
    for i, argument in enumerate(arguments):
        tensor = given[i] if i < len(given) and isinstance(given[i], torch.Tensor) else None
        if tensor is not None:
            assert argument is tensor or argument == tensor.data_ptr()
        described.append(argument if tensor is None else (tensor.dtype, tensor.shape))
    return asked, described


def compare_launches():
    bank = wk.FilterBank([torch.randn(20, 3, 3, 3), torch.randn(9, 4, 1, 1)], groups=[0, 1])
    counter, rates = torch.zeros(2, dtype=torch.int32), torch.tensor([0.5, 0.3], dtype=torch.float64)
    looked_up, given, hooked = [], [], []
    run = triton.runtime.jit.JITFunction.run
    triton.runtime.jit.JITFunction.run = lambda self, *args, **kw: looked_up.append(self) or run(self, *args, **kw)
    launch.observers.append(lambda name, arguments, constants: given.append(arguments))
    for step in range(3):
        if step == 2:
            set_hook(hooked.append)
        wk.evolve_(bank, rate=rates, starvation=counter, starvation_limit=1.0)
    set_hook(None)
    launch.observers.clear()
    triton.runtime.jit.JITFunction.run = run
    assert len(looked_up) == 3, len(looked_up)
    assert len(launched) == len(given) == 9, (len(launched), len(given))
    steps = [list(map(described, launched[i : i + 3], given[i : i + 3])) for i in (0, 3, 6)]
    for one, two, three in zip(*steps, strict=True):
        assert one == two == three, f"{one}\n{two}\n{three}"
    assert all(isinstance(a, int) for a in launched[3][-1][:4]), "addresses, no tensors"
    assert [metadata.get()["name"] for metadata in hooked] == [name for name, *_ in launched[6:]]
    print("3 kernels, launched alike with and without Triton's look-up, and for a hook")


def set_hook(hook):
    """Has ``hook`` called before every launch; None: nothing."""
    if not hasattr(triton, "knobs"):
        triton.compiler.CompiledKernel.launch_enter_hook = hook
    elif hasattr(triton.knobs.runtime.launch_enter_hook, "calls"):
        triton.knobs.runtime.launch_enter_hook.calls[:] = [hook] if hook else []
    else:
        triton.knobs.runtime.launch_enter_hook = hook


def print_host_time(steps):
    from benchmarks.case import Case

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
    backends.unavailable = lambda name, device: None
    Place.current = lambda device: Place(device, STREAM, False)
    with wk.use_backend("triton"):
        compare_launches()
        if len(sys.argv) > 1:
            print_host_time(int(sys.argv[1]))
