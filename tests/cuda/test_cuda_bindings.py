"""The bindings refuse what would make a kernel touch memory that it was not given, and the choice of the backend."""

import pytest
import torch

import we_kernels as wk
from tests import availability
from we_kernels.errors import BackendUnavailableError
from we_kernels.runtime import native
from we_kernels.runtime.layout import Layer, segments_of
from we_kernels.runtime.view import BankView

pytestmark = pytest.mark.xdist_group("cuda-emulation")  # one process compiles
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Call:
    """Arguments of the bindings for two small layers; change one and see it refused."""

    def __init__(self, module):
        self.module = module
        self.weights = [torch.full((4, 3, 3, 3), 7.0), torch.full((5, 2), 7.0).double()]
        self.layout = BankView(self.weights, [0, 0], ()).layout
        self.table = self.layout.table.clone()
        self.segments = self.layout.segments.table.clone()
        self.pointers = torch.tensor([weight.data_ptr() for weight in self.weights])
        self.plan = torch.zeros(module.cuda_plan_size(self.segments.data_ptr(), 2, 1), dtype=torch.int32)
        module.cuda_make_plan(self.segments.data_ptr(), 2, 1, memory(self.plan))
        self.scratch = torch.full((module.cuda_scratch_size(2, 9),), -7, dtype=torch.int32)
        self.rates, self.ratios = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.5, 0.0])
        self.starvation = torch.full((1,), -7, dtype=torch.int32)
        self.importance, self.threshold = torch.full((9,), -7.0), torch.full((1,), -7.0)
        self.donor, self.inferior = (torch.full((n,), -7, dtype=torch.int32) for n in (9, 2))

    def evolve(self, **changes):
        arguments = {
            "weights": self.pointers.tolist(),
            "table": self.table.data_ptr(),
            "num_layers": 2,
            "pointers": memory(self.pointers),
            "layers": memory(self.table),
            "plan": memory(self.plan),
            "scratch": memory(self.scratch),
            "rates": memory(self.rates),
            "ratios": memory(self.ratios),
            "starvation": memory(self.starvation),
            "limit": 2.0,
            "rule": "paper",
            "donor": memory(self.donor),
            "importance": memory(self.importance),
            "threshold": memory(self.threshold),
            "inferior": memory(self.inferior),
            "device": 0,
            "stream": 0,
        }
        self.module.cuda_evolve(*(arguments | changes).values())

    def assert_untouched(self):
        assert all(bool((weight == 7).all()) for weight in self.weights)
        for output in (self.importance, self.donor, self.threshold, self.inferior, self.scratch, self.starvation):
            assert bool((output == -7).all())
        assert self.module.take_launches() == []


def memory(tensor):
    return tensor.data_ptr(), tensor.nbytes


def test_a_good_call_works(emulated):
    call = Call(emulated)
    call.evolve()
    assert call.importance.tolist() == [63.0] * 4 + [7.0] * 5
    assert call.threshold.tolist() == [7.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [16]}, "1 weights for a table of 2 layers"),
        ({"weights": [0, 16]}, "layer 0 of the table: its weight has no memory"),
        ({"weights": [16, 20]}, "layer 1 of the table: its weight is misaligned"),
        ({"table": 0}, "table is null"),
        ({"num_layers": -1}, "table has a negative size"),
        ({"pointers": (8, 8)}, "pointers has 1 elements, not 2"),
        ({"pointers": (12, 16)}, "pointers is misaligned"),
        ({"layers": (8, 112)}, "layers has 1 elements, not 2"),
        ({"layers": (8, 120)}, "layers has elements of another size"),
        ({"layers": (0, 224)}, "layers is null"),
        ({"plan": (8, 8)}, "plan has 2 elements, not"),
        ({"scratch": (8, 60)}, "scratch has 15 elements, not 16"),
        ({"rates": (8, 4)}, "rates has elements of another size"),
        ({"rates": (8, 16)}, "rates has 2 elements, not 1"),
        ({"ratios": (8, 0)}, "group is not in"),
        ({"ratios": (8, 16)}, "plan has"),
        ({"ratios": (8, 12)}, "ratios has 3 elements, not 2"),
        ({"starvation": (8, 8)}, "starvation has 2 elements, not 1"),
        ({"limit": 0.0}, "starvation_limit must be positive"),
        ({"limit": float("nan")}, "starvation_limit must be positive"),
        ({"rule": "none"}, "rule must be"),
        ({"donor": (8, 32)}, "donor has 8 elements, not 9"),
        ({"donor": (8, -4)}, "donor has a negative size"),
        ({"importance": (6, 36)}, "importance is misaligned"),
        ({"threshold": (0, 4)}, "threshold is null"),
        ({"inferior": (8, 9)}, "inferior has elements of another size"),
    ],
)
def test_bad_arguments(emulated, changes, message):
    call = Call(emulated)
    with pytest.raises(ValueError, match=message):
        call.evolve(**changes)
    call.assert_untouched()


@pytest.mark.parametrize(
    ("field", "value"), [("filters", -1), ("channels", 0), ("filter_stride", 2**61), ("dtype", 4), ("first_filter", 1)]
)
def test_bad_tables(emulated, field, value):
    call = Call(emulated)
    call.table[0, Layer._fields.index(field)] = value
    with pytest.raises(ValueError, match="layer 0 of the table"):
        call.evolve()
    call.assert_untouched()


def test_the_other_functions_check_too(emulated):
    call = Call(emulated)
    bank = (call.pointers.tolist(), call.table.data_ptr(), 2, memory(call.pointers), memory(call.table))
    with pytest.raises(ValueError, match="importance has 8 elements, not 9"):
        emulated.cuda_importance(*bank, (8, 32), 0, 0)
    with pytest.raises(ValueError, match="donor has 10 elements, not 9"):
        emulated.cuda_crossover(*bank, (8, 40), "paper", 0, 0)
    with pytest.raises(ValueError, match="rule must be"):
        emulated.cuda_crossover(*bank, memory(call.donor), "papers", 0, 0)
    call.segments[1, 1] = 3
    where = call.segments.data_ptr(), 2
    for function, arguments in (
        (emulated.cuda_match, (*where, *[(8, 8)] * 5, None, 1.0, *[(8, 4)] * 3, 0, 0)),
        (emulated.cuda_plan_size, (*where, 1)),
        (emulated.cuda_make_plan, (*where, 1, memory(call.plan))),
    ):
        with pytest.raises(ValueError, match="layer 1 of the table: first_filter is 3, not 4"):
            function(*arguments)
    call.segments[1, 1] = 4
    with pytest.raises(ValueError, match="plan has 2 elements, not"):
        emulated.cuda_make_plan(*where, 1, (call.plan.data_ptr(), 8))
    call.assert_untouched()


def test_plan(emulated):
    """The tables that csrc/cuda/plan.h describes."""
    segments = segments_of((40, 0, 5, 33), (1, 0, 0, 1))
    size = emulated.cuda_plan_size(segments.table.data_ptr(), 4, 3)
    plan = torch.full((size,), -99, dtype=torch.int32)
    emulated.cuda_make_plan(segments.table.data_ptr(), 4, 3, memory(plan))
    tables = plan.split([12, 8, 4, 78, 4, 10])
    assert tables[0].view(4, 3).tolist() == segments.table.tolist()
    assert tables[1].view(4, 2).tolist() == [[1, 0], [2, 5], [0, 40], [3, 33]]
    assert tables[2].tolist() == [0, 2, 4, 4]
    assert tables[3].tolist() == [*range(40, 45), *range(40), *range(45, 78)]
    assert tables[4].tolist() == [0, 5, 78, 78]
    assert tables[5].view(5, 2).tolist() == [[0, 0], [0, 32], [2, 0], [3, 0], [3, 32]]


@pytest.fixture
def ready(monkeypatch):
    """Backends that can work on tensors of any device; none of them is called."""

    def make(*names):
        availability.pretend(monkeypatch, lambda name, device: None if name in names else f"no {name} in this test")

    return make


def test_choice(ready):
    ready("triton", "native", "torch")
    assert (wk.backend_of("evolve_", CUDA), wk.backend_of("evolve_", CPU)) == ("triton", "native")
    ready("native", "torch")
    assert (wk.backend_of("evolve_", CUDA), wk.backend_of("evolve_", CPU)) == ("native", "native")
    ready("torch")
    assert (wk.backend_of("evolve_", CUDA), wk.backend_of("evolve_", CPU)) == ("torch", "torch")


def test_native_takes_cuda_tensors_only_where_it_has_kernels(ready):
    ready("native", "torch")
    assert (wk.backend_of("blend_", CUDA), wk.backend_of("blend_", CPU)) == ("torch", "native")
    with wk.use_backend("native"):
        assert wk.backend_of("evolve_", CUDA) == "native"
        with pytest.raises(BackendUnavailableError, match="has no cuda kernels for blend_"):
            wk.backend_of("blend_", CUDA)


def test_the_projection_is_one_for_all_backends_but_torch(ready):
    ready("triton", "native", "torch")
    assert wk.backend_of("project_low_rank_", CUDA) == "any"
    for name, wanted in (("native", "any"), ("triton", "any"), ("torch", "torch")):
        with wk.use_backend(name):
            assert wk.backend_of("project_low_rank_", CPU) == wanted


def test_what_is_said_when_cuda_cannot_be_used(monkeypatch, emulated):
    assert native.unavailable("meta").startswith("it has no kernels for meta")
    monkeypatch.setattr(native, "module", emulated)
    assert native.unavailable("cuda") is None
    emulated.set_driver(35, 2, 0, False)
    assert "cannot use CUDA: the NVIDIA driver supports CUDA 12.4" in native.unavailable("cuda")
