"""A GPU that is not there: CPU tensors that say they are on ``cuda:N``, and a record of what is asked of the device.

While a `PretendGpu` is active, tensors made on, or sent to, a CUDA device live in CPU memory and are marked; what is
computed from a marked tensor is marked. The Triton kernels run in the interpreter. `events` holds, in order:

- ``("launch", kernel, device)``: a kernel was launched;
- ``("operator", name)``: any other call on marked tensors;
- ``("wait", why)``: the host would wait for the device: a value was read, or copied from memory that is not pinned;
- ``("upload", number of elements)``, ``("download", ...)``: a copy that is not waited for;
- ``("allocate", name)``: `torch.empty` and its like.

`idle` says whether the device is through with its work, when an event is asked.

A CUDA graph of such a device keeps the calls made while it is captured and does them again at a replay. As on a real
one, capturing changes nothing, and a wait or an upload is an error.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

from tests import availability
from we_kernels.runtime.transfer import Place

READS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "equal",
    "allclose",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
}
READS |= {"bincount", "unique", "masked_select", "is_nonzero", "__contains__", "repeat_interleave"}
MAKERS = {"empty", "zeros", "ones", "full", "arange", "empty_like", "new_empty", "zeros_like", "full_like", "clone"}
ACCESSORS = {
    "__get__",
    "data_ptr",
    "stride",
    "size",
    "dim",
    "numel",
    "element_size",
    "untyped_storage",
    "is_contiguous",
}
ACCESSORS |= {"storage_offset", "__len__", "is_floating_point", "__hash__", "__set__"}
POISON = {torch.float32: float("nan"), torch.int32: -99}


class PretendGpu(TorchFunctionMode):
    """See above; made by `pretend_gpu`."""

    def __init__(self):
        super().__init__()
        self.events = []
        self.current = 0
        self.graph = None
        self.pinned = []
        self.idle = True

    def count(self, kind):
        return sum(event[0] == kind for event in self.events)

    def launches(self):
        return [event[1] for event in self.events if event[0] == "launch"]

    def wait(self, why):
        assert self.graph is None, f"{why} while a graph is captured"
        self.events.append(("wait", why))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.__name__
        owner = _marked(args) if _marked(args) is not None else _marked(kwargs.values())
        if name == "__get__":
            return self._attribute(func, args, owner)
        if name == "get_device":
            return -1 if owner is None else owner
        if kwargs.pop("pin_memory", False):
            result = func(*args, **kwargs)
            self.pinned.append(result)
            return result
        if name == "pin_memory":
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        wanted = self._requested(name, args, kwargs)
        if name == "to" or name == "copy_":
            return self._transfer(func, name, args, kwargs, owner, wanted)
        if wanted is not None and wanted >= 0:
            kwargs["device"] = "cpu"
            if name in ("tensor", "as_tensor"):
                self.wait(f"{name} on the device")
            return self._mark(self._fresh(name, func(*args, **kwargs)), wanted)
        if owner is None or name in ACCESSORS:
            return func(*args, **kwargs)
        if name in READS or (name == "__getitem__" and _has_mask(args[1])):
            self.wait(name)
            return func(*args, **kwargs).clone() if name == "cpu" else func(*args, **kwargs)
        self.events.append(("allocate" if name in MAKERS else "operator", name))
        return self._run(name, func, args, kwargs, owner)

    def launch(self, function, programs, place, *arguments, **options):
        """In place of `launch.launch`."""
        device = place.device
        if device.type == "cpu":
            return self.real_launch(function, programs, place, *arguments, **options)
        assert all(_marked([x]) in (None, device.index) for x in arguments), "a tensor of another device"
        if programs:
            self.events.append(("launch", function.__name__, device.index))

        def run():
            self.real_launch(function, programs, Place(torch.device("cpu"), 0, False), *arguments, **options)

        if self.graph is None:
            with torch._C.DisableTorchFunction():
                run()
        else:
            self.graph.tape.append(run)
        return None

    def _run(self, name, func, args, kwargs, owner):
        if self.graph is None:
            return self._mark(self._fresh(name, func(*args, **kwargs)), owner)
        if name.endswith("_") and not name.endswith("__"):
            self.graph.tape.append(lambda: func(*args, **kwargs))
            return args[0]
        result = func(*args, **kwargs)
        if isinstance(result, bool):  # of what the host knows, such as whether two tensors share memory
            return result
        if name not in MAKERS or name == "clone":
            self.graph.tape.append(lambda: _overwrite(result, func(*args, **kwargs)))
        return self._mark(result, owner)

    def _attribute(self, func, args, owner):
        which = func.__self__.__name__
        if owner is not None and which in ("device", "is_cuda"):
            return torch.device("cuda", owner) if which == "device" else True
        return self._mark(func(*args), owner)

    def _requested(self, name, args, kwargs):
        """The index of the CUDA device that a call names."""
        for value in (kwargs.get("device"), *(args[1:] if name == "to" else ())):
            if isinstance(value, (str, torch.device)):
                device = torch.device(value)
                return (device.index or 0) if device.type == "cuda" else -1
        return None

    def _transfer(self, func, name, args, kwargs, owner, wanted):
        if name == "copy_":
            source = _marked(args[1:])
            if owner is not None and _marked([args[0]]) is not None and source is not None:
                self.events.append(("operator", name))
                return self._run(name, func, args, kwargs, owner)
            if owner is None:
                return func(*args, **kwargs)
            if source is not None:
                self._read(args[0], kwargs)
                return func(*args, **kwargs)
            self._copied(args[1], kwargs)
            return self._run(name, func, args, kwargs, owner)
        if owner is not None and wanted == -1:
            self.wait("to the host")
            return func(*args, **kwargs).clone()
        if owner is None and wanted is not None and wanted >= 0:
            self._copied(args[0], kwargs)
            rest = [x for x in args[1:] if not isinstance(x, (str, torch.device))]
            kwargs.pop("device", None)
            return self._mark(func(args[0], *(rest or ["cpu"]), **kwargs | {"copy": True}), wanted)
        if wanted is not None and owner is not None and wanted != owner:
            raise AssertionError("copies between devices are not pretended")
        kwargs.pop("device", None)
        rest = [x for x in args[1:] if not isinstance(x, (str, torch.device))]
        if owner is None or not (rest or kwargs):
            return args[0] if owner is not None and not kwargs.get("copy") else func(*args, **kwargs)
        self.events.append(("operator", name))
        return self._run(name, func, (args[0], *rest), kwargs, owner)

    def _copied(self, source, kwargs):
        pinned = any(source is tensor for tensor in self.pinned)
        if not (pinned and kwargs.get("non_blocking")):
            self.wait("copy from pageable memory")
            return
        assert self.graph is None, "an upload while a graph is captured"
        self.events.append(("upload", source.numel()))

    def _read(self, target, kwargs):
        pinned = any(target is tensor for tensor in self.pinned)
        if pinned and kwargs.get("non_blocking"):
            self.events.append(("download", target.numel()))
        else:
            self.wait("copy to pageable memory")

    def _fresh(self, name, result):
        if name in ("empty", "empty_like", "new_empty") and result.dtype in POISON:
            result.fill_(POISON[result.dtype])
        return result

    def _mark(self, result, device):
        if isinstance(result, torch.Tensor):
            if device is not None and device >= 0:
                result._pretended = device
        elif isinstance(result, (list, tuple)):
            for item in result:
                self._mark(item, device)
        return result


def _marked(values):
    """The device of the first marked tensor among the values."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if "_pretended" in value.__dict__:
                return value.__dict__["_pretended"]
        elif isinstance(value, (list, tuple)) and (found := _marked(value)) is not None:
            return found
    return None


def _has_mask(index):
    return any(
        isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in (index if type(index) is tuple else [index])
    )


def _overwrite(result, new):
    if isinstance(result, torch.Tensor):
        result.copy_(new)
    else:
        for ours, other in zip(result, new, strict=True):
            ours.copy_(other)


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    made = 0

    def __init__(self):
        self.tape = []
        Graph.made += 1

    def replay(self):
        with torch._C.DisableTorchFunction():
            for call in self.tape:
                call()


@contextmanager
def pretend_gpu(monkeypatch):
    """A `PretendGpu`, active; two devices, cuda:0 and cuda:1."""
    from we_kernels.evolution.triton import launches
    from we_kernels.reactivation.triton import launches as reactivation
    from we_kernels.runtime import transfer
    from we_kernels.runtime.triton import launch

    gpu = PretendGpu()
    gpu.real_launch = launch.launch

    class Event:
        def record(self):
            pass

        def query(self):
            return gpu.idle

        def synchronize(self):
            if not gpu.idle:
                gpu.wait("an event")

    @contextmanager
    def device(which):
        before, gpu.current = gpu.current, torch.device(which).index or 0
        yield
        gpu.current = before

    @contextmanager
    def graph(recorded, **options):
        gpu.wait("the capture begins")
        gpu.graph = recorded
        yield
        gpu.graph = None

    for module in (launches, reactivation):
        monkeypatch.setattr(module, "launch", gpu.launch)
    monkeypatch.setattr(transfer, "_uploads", {})  # what earlier tests left there decides what is dropped
    monkeypatch.setattr(launches, "STARVATION_TILE", 16)  # the interpreter's scans are slow
    availability.pretend(monkeypatch, lambda name, device: None)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu.current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.graph is not None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with gpu:
        yield gpu


def on_gpu(model, device=0):
    """Marks a module's parameters, in place, as being on a device."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor._pretended = device
    return model
