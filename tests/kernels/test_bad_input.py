"""The bad input table: each a clear error that names the argument, with nothing changed."""

import runpy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import we_kernels as wk
from tests import availability
from we_kernels import BackendUnavailableError
from we_kernels.runtime import backends, memory

W = torch.randn


def bank_errors():
    storage = W(40)
    lazy = torch.nn.LazyConv2d(4, 3).weight
    return {
        "one tensor": (lambda: wk.FilterBank(W(2, 3)), TypeError, r"write FilterBank\(\[weight\]\)"),
        "no tensor": (lambda: wk.FilterBank([W(2, 3), 5]), TypeError, r"weights\[1\] must be a tensor, got int"),
        "named": (lambda: wk.FilterBank([5], names=["stem.weight"]), TypeError, "stem.weight must be a tensor"),
        "integer": (lambda: wk.FilterBank([torch.ones(2, 3).int()]), TypeError, r"weights\[0\] must be float32.*int32"),
        "complex": (lambda: wk.FilterBank([W(2, 3) + 0j]), TypeError, r"weights\[0\] must be float32"),
        "quantized": (
            lambda: wk.FilterBank([quantized()]),
            TypeError,
            r"weights\[0\] is quantized .*qint8.*float model",
        ),
        "fake": (lambda: wk.FilterBank([fake()]), TypeError, r"weights\[0\] is a FakeTensor.*the real model"),
        "nested": (lambda: wk.FilterBank([nested()]), TypeError, r"weights\[0\] is a nested tensor"),
        "wrapped": (lambda: wk.FilterBank([Wrapped(W(2, 3))]), TypeError, r"weights\[0\] is a Wrapped, .*plain tensor"),
        "in vmap": (lambda: in_vmap(), TypeError, r"weights\[0\] is being transformed by torch.func"),
        "negated": (lambda: wk.FilterBank([(W(2, 3) + 0j).conj().imag]), TypeError, r"resolve_neg\(\)"),
        "freed": (lambda: wk.FilterBank([freed(W(2, 3))]), ValueError, r"the storage of weights\[0\] was freed"),
        "misaligned": (
            lambda: wk.FilterBank([misaligned(6)], names=["x.weight"]),
            ValueError,
            "x.weight is misaligned",
        ),
        "meta": (lambda: wk.FilterBank([W(2, 3, device="meta")]), TypeError, r"weights\[0\] is a meta tensor"),
        "lazy": (lambda: wk.FilterBank([lazy]), TypeError, "run one forward pass"),
        "sparse": (lambda: wk.FilterBank([torch.eye(3).to_sparse()]), TypeError, r"dense.*to_dense\(\)"),
        "mkldnn": (lambda: wk.FilterBank([torch.eye(3).to_mkldnn()]), TypeError, r"dense.*to_dense\(\)"),
        "scalar": (lambda: wk.FilterBank([torch.tensor(1.0)]), ValueError, "1 to 5 dimensions, got 0"),
        "six dimensions": (lambda: wk.FilterBank([W(1, 1, 1, 1, 1, 2)]), ValueError, "1 to 5 dimensions, got 6"),
        "expanded": (lambda: wk.FilterBank([W(1, 3).expand(4, 3)]), ValueError, "overlaps itself"),
        "overlapping": (
            lambda: wk.FilterBank([storage[:20].view(4, 5), storage[15:35].view(4, 5)]),
            ValueError,
            r"weights\[1\] overlaps weights\[0\]",
        ),
        "empty filters": (lambda: wk.FilterBank([W(3, 0, 2, 2)]), ValueError, "filters without elements"),
        "filter_dim range": (lambda: wk.FilterBank([W(3, 4)], 2), ValueError, r"filter_dim of weights\[0\].*\[0, 1\]"),
        "filter_dim type": (lambda: wk.FilterBank([W(3, 4)], [1.0]), TypeError, "filter_dim of weights"),
        "filter_dim count": (lambda: wk.FilterBank([W(3, 4)], [0, 1]), ValueError, "filter_dim must be one integer or"),
        "groups count": (lambda: wk.FilterBank([W(3, 4)], groups=[0, 1]), ValueError, "groups must have one entry"),
        "groups value": (lambda: wk.FilterBank([W(3, 4)], groups=[-1]), ValueError, "groups must be integers from 0"),
        "names count": (lambda: wk.FilterBank([W(3, 4)], names=[]), ValueError, "names must have one entry"),
        "tied, other dim": (lambda: wk.FilterBank([storage.view(4, 10)] * 2, [0, 1]), ValueError, "another filter_dim"),
    }


@pytest.mark.parametrize("name", bank_errors())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_bank(name):
    call, error, message = bank_errors()[name]
    with pytest.raises(error, match=message):
        call()


def test_views_that_interleave_are_fine():
    columns = W(6, 8)
    bank = wk.FilterBank([columns[:, ::2], columns[:, 1::2]])
    assert bank.num_filters == 12


def test_what_overlaps_is_found_among_many_that_do_not():
    storage = W(60)
    columns = list(storage.view(6, 10).unbind(1))
    wk.FilterBank(columns)
    with pytest.raises(ValueError, match=r"weights\[10\] overlaps weights\[7\]"):
        wk.FilterBank([*columns, storage[37:38]])
    halves = storage.view(torch.float16)  # of the first column's fourth element
    with pytest.raises(ValueError, match=r"weights\[10\] overlaps weights\[0\]"):
        wk.FilterBank([*columns, halves[61:62]])
    wk.FilterBank([columns[0], halves[62:80]])


@pytest.mark.parametrize("disjoint", [True, False])
def test_many_views_of_one_storage(disjoint, monkeypatch):
    """Each is looked at a few times, not once for every other one."""
    seen = []
    byte_range = memory._byte_range
    monkeypatch.setattr(memory, "_byte_range", lambda weight: seen.append(weight) or byte_range(weight))
    matrix = W(20, 300)
    wk.FilterBank(matrix.view(300, 20).unbind() if disjoint else matrix.unbind(1))
    assert len(seen) <= 2 * 300


def quantized():
    return torch.quantize_per_tensor(W(4, 2, 3, 3), 0.1, 0, torch.qint8)


def fake():
    with FakeTensorMode():
        return W(2, 3)


def nested():
    return torch.nested.nested_tensor([W(2), W(3)], layout=torch.jagged)


def in_vmap():
    torch.vmap(lambda weight: wk.filter_importance(wk.FilterBank([weight])))(W(2, 3, 4))


def freed(weight):
    weight.untyped_storage().resize_(0)
    return weight


def misaligned(count):
    return torch.frombuffer(bytearray(4 * count + 1), dtype=torch.float32, offset=1)


class Wrapped(torch.Tensor):
    """Has its values in another tensor."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


def test_a_distributed_tensor():
    """Under a process group, of which this process is all."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        part = distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
        for weight in (part, torch.nn.Parameter(part)):
            with pytest.raises(
                TypeError, match=r"conv\.weight is a DTensor, of which this rank holds a part; .*gather the"
            ):
                wk.FilterBank([weight], names=["conv.weight"])
    finally:
        dist.destroy_process_group()


def test_numpy_numbers_are_numbers():
    weight, number = W(6, 4), np.float32(0.5)
    bank = wk.FilterBank([weight], np.int64(1), groups=[np.int8(0)])
    assert bank.filter_dims == (1,)
    found = wk.evolve_(bank, rate=number, local_ratio=np.float64(0.5))
    assert found.donor.shape == (4,)
    wk.evolve_(bank, rate=[number], starvation=COUNTER.clone(), starvation_limit=np.int32(3))
    selected = wk.select_filters(bank, number, seed=np.uint64(2**63 - 1), step=np.int16(4))
    assert torch.equal(selected, wk.select_filters(bank, 0.5, seed=2**63 - 1, step=4))
    assert wk.weight_entropy(bank, np.int32(5)).tolist() == wk.weight_entropy(bank, 5).tolist()
    wk.asynchronous_sgd_([weight], [weight], None, [np.int64(1)], selected, lr=number, weight_decay=np.float16(0.5))
    wk.project_low_rank_([weight], np.int64(2), filter_dim=np.int64(1), skip_below=np.float32(1e-4))
    wk.project_low_rank_([weight], [np.int64(2)], energy_transfer=np.bool_(True))
    for wrong in (np.bool_(True), np.array([1]), np.array([1.5]), True):
        with pytest.raises(TypeError, match="step must be an integer"):
            wk.select_filters(bank, 0.5, seed=1, step=wrong)


NAN = float("nan")
DONOR = torch.tensor([-1, 0, -1, -1, -1, -1], dtype=torch.int32)
COUNTER = torch.zeros(1, dtype=torch.int32)


def evolve(bank, **arguments):
    return wk.evolve_(bank, **({"rate": 0.9, "local_ratio": 1.0} | arguments))


def match(bank, **arguments):
    return wk.match_filters(bank, arguments.pop("importance", torch.rand(6)), **({"rate": 0.5} | arguments))


CALLS = {
    "rate below": (lambda b: evolve(b, rate=-0.1), ValueError, r"rate must be in \[0, 1\], got -0.1"),
    "rate above": (lambda b: match(b, rate=1.1), ValueError, r"rate must be in \[0, 1\], got 1.1"),
    "rate nan": (lambda b: evolve(b, rate=NAN), ValueError, r"rate must be in \[0, 1\], got nan"),
    "rate type": (lambda b: evolve(b, rate="0.2"), TypeError, "rate must be a number"),
    "rate bool": (lambda b: evolve(b, rate=True), TypeError, "rate must be a number"),
    "rate list": (lambda b: evolve(b, rate=[0.1, 0.2]), ValueError, r"rate must have one entry per group \(1\), got 2"),
    "rate entry": (lambda b: evolve(b, rate=[7]), ValueError, r"rate\[0\] must be in \[0, 1\], got 7"),
    "rate dtype": (lambda b: evolve(b, rate=torch.tensor([0.2])), TypeError, "rate must be torch.float64"),
    "rate tensor": (lambda b: evolve(b, rate=torch.tensor([2.0]).double()), ValueError, "rate must be in"),
    "ratio below": (lambda b: match(b, local_ratio=-1.0), ValueError, r"local_ratio must be in \[0, 1\], got -1.0"),
    "ratio nan": (lambda b: evolve(b, local_ratio=NAN), ValueError, "local_ratio must be in"),
    "ratio list": (lambda b: evolve(b, local_ratio=[None, 0.1]), ValueError, "local_ratio must have one entry"),
    "zero type": (lambda b: evolve(b, zero_is_inferior=1), TypeError, "zero_is_inferior must be True, False or a list"),
    "zero entry": (lambda b: evolve(b, zero_is_inferior=[0.5]), TypeError, "zero_is_inferior must be True, False or a"),
    "zero list": (lambda b: match(b, zero_is_inferior=[True] * 2), ValueError, "zero_is_inferior must have one entry"),
    "rule": (lambda b: evolve(b, rule="Paper"), ValueError, 'rule must be "paper" or "released", got \'Paper\''),
    "rule of crossover_": (lambda b: wk.crossover_(b, DONOR, "p"), ValueError, "rule must be"),
    "importance size": (lambda b: match(b, importance=torch.rand(7)), ValueError, r"importance must have shape \(6,\)"),
    "importance dtype": (
        lambda b: match(b, importance=torch.rand(6).double()),
        TypeError,
        "importance must be torch",
    ),
    "importance list": (lambda b: match(b, importance=[1.0] * 6), TypeError, "importance must be a tensor"),
    "limit alone": (lambda b: evolve(b, starvation_limit=2.0), ValueError, "starvation_limit needs starvation"),
    "counter alone": (lambda b: evolve(b, starvation=COUNTER), ValueError, "starvation needs starvation_limit"),
    "limit zero": (lambda b: evolve(b, starvation=COUNTER, starvation_limit=0), ValueError, "must be positive, got 0"),
    "limit nan": (lambda b: evolve(b, starvation=COUNTER, starvation_limit=NAN), ValueError, "must be positive"),
    "counter dtype": (
        lambda b: evolve(b, starvation=COUNTER.long(), starvation_limit=2.0),
        TypeError,
        "starvation must be torch.int32",
    ),
    "counter size": (
        lambda b: evolve(b, starvation=torch.zeros(2, dtype=torch.int32), starvation_limit=2.0),
        ValueError,
        r"starvation must have shape \(1,\)",
    ),
    "donor size": (lambda b: wk.crossover_(b, DONOR[:5]), ValueError, r"donor must have shape \(6,\), got \(5,\)"),
    "donor dtype": (lambda b: wk.crossover_(b, DONOR.long()), TypeError, "donor must be torch.int32, got torch.int64"),
    "donor device": (lambda b: wk.crossover_(b, DONOR.to("meta")), ValueError, "donor must be on cpu.*got meta"),
    "donor above": (
        lambda b: wk.crossover_(b, torch.tensor([-1, 6, -1, -1, -1, -1], dtype=torch.int32)),
        ValueError,
        r"donor\[1\] \(row 1 of layer 0\) is 6; it must be -1 or a row of that layer, 0 to 5",
    ),
    "donor below": (lambda b: wk.crossover_(b, DONOR - 1), ValueError, r"donor\[0\].* is -2; it must be -1"),
    "donor is replaced": (
        lambda b: wk.crossover_(b, torch.tensor([1, 2, -1, -1, -1, -1], dtype=torch.int32)),
        ValueError,
        r"donor\[0\].* is 1, a row that is itself replaced",
    ),
    "donor of itself": (
        lambda b: wk.crossover_(b, torch.tensor([0, -1, -1, -1, -1, -1], dtype=torch.int32)),
        ValueError,
        "itself replaced",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_call(backend, name):
    call, error, message = CALLS[name]
    weight = W(6, 3, 3, 3)
    before = weight.clone()
    with pytest.raises(error, match=message):
        call(wk.FilterBank([weight]))
    assert torch.equal(weight, before)
    assert COUNTER.tolist() == [0]


def test_donors_of_the_second_layer_count_from_its_own_first_row(backend):
    bank = wk.FilterBank([W(4, 2, 3, 3), W(3, 2, 3, 3)])
    donor = torch.full((7,), -1, dtype=torch.int32)
    donor[5] = 3
    with pytest.raises(ValueError, match=r"donor\[5\] \(row 1 of layer 1\) is 3; .* 0 to 2"):
        wk.crossover_(bank, donor)


def test_unvalidated_donors_out_of_range_are_left_alone(backend):
    weight = W(3, 2, 3, 3)
    before = weight.clone()
    wk.crossover_(wk.FilterBank([weight]), torch.tensor([5, -9, 2**30], dtype=torch.int32), validate=False)
    assert torch.equal(weight, before)


def test_misaligned_gradient():
    weight, gradient = W(6), misaligned(6)
    before, selected = weight.clone(), torch.ones(6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"grads\[0\] is misaligned"):
        wk.asynchronous_sgd_([weight], [gradient], None, [0], selected, lr=0.1)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bad", [lambda: misaligned(6), lambda: freed(torch.ones(6))], ids=["misaligned", "freed"])
@pytest.mark.parametrize("name", ["row_resets", "column_resets", "steps"])
def test_small_tensors_of_a_step_of_adamw(name, bad):
    weight, tensor = W(6, 6), bad()
    before, given = weight.clone(), {"row_resets": None, "column_resets": None, "steps": [2.0], name: [tensor]}
    if name == "steps":
        given["steps"] = [misaligned(1) if tensor.data_ptr() else freed(torch.ones(1))]
    moments = [torch.zeros(6, 6) for _ in range(3)]
    with pytest.raises(ValueError, match=rf"{name}\[0\] (is misaligned|was freed)|storage of {name}\[0\] was freed"):
        wk.unit_adamw_([weight], *([moment] for moment in moments), None, groups=1, lr=0.1, **given)
    assert torch.equal(weight, before)


def test_bank_whose_dtype_changed():
    weight = W(6, 2)
    bank = wk.FilterBank([weight], names=["conv.weight"])
    weight.data = weight.double()
    assert wk.filter_importance(bank).dtype == torch.float32
    weight.data = weight.int()
    with pytest.raises(TypeError, match=r"conv.weight must be float32, .* got torch.int32"):
        wk.filter_importance(bank)


def resized(weight):
    weight.resize_(7, 2, 3, 3)


def moved(weight):
    weight.data = misaligned(6 * 2 * 9).view(6, 2, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (resized, r"conv.weight was resized from \(6, 2, 3, 3\) to \(7, 2, 3, 3\); make a new FilterBank"),
        (freed, "the storage of conv.weight was freed"),
        (moved, "conv.weight is misaligned: .* no multiple of the 4 bytes"),
    ],
)
def test_bank_whose_tensor_changed(backend, change, message):
    weight, other = W(6, 2, 3, 3), W(3, 2)
    bank = wk.FilterBank([other, weight], names=["fc.weight", "conv.weight"])
    change(weight)
    before = other.clone()
    for call in (wk.filter_importance, lambda b: wk.evolve_(b, rate=0.5)):
        with pytest.raises(ValueError, match=message):
            call(bank)
    assert torch.equal(other, before)


def test_unknown_backend(monkeypatch):
    with pytest.raises(ValueError, match=r"use_backend\(name\) must be one of .*, got 'cuda'"):
        wk.use_backend("cuda").__enter__()
    monkeypatch.setenv("WE_KERNELS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="environment variable WE_KERNELS_BACKEND must be one of"):
        wk.filter_importance(wk.FilterBank([W(2, 3)]))


def test_forced_backend_that_cannot_run(monkeypatch):
    weight = W(4, 2, 3, 3)
    before = weight.clone()
    availability.pretend(monkeypatch, lambda name, device: f"no {name} on {device}" if name != "torch" else None)
    with pytest.raises(BackendUnavailableError, match="'triton' cannot run here: cpu: no triton on cpu; cuda: no"):
        wk.use_backend("triton").__enter__()
    monkeypatch.setenv("WE_KERNELS_BACKEND", "native")
    with pytest.raises(BackendUnavailableError, match="'native' cannot work on cpu tensors: no native on cpu"):
        wk.evolve_(wk.FilterBank([weight]), rate=0.5)
    assert torch.equal(weight, before)
    monkeypatch.delenv("WE_KERNELS_BACKEND")
    wk.evolve_(wk.FilterBank([weight]), rate=0.5)  # automatic choice falls back


def test_forced_from_outside(monkeypatch):
    monkeypatch.setenv("WE_KERNELS_BACKEND", "torch")
    assert wk.backend_of("evolve_", torch.device("cpu")) == "torch"
    assert wk.info()["forced backend"] == "torch"


def test_info_command(capsys):
    runpy.run_module("we_kernels")
    output = capsys.readouterr().out
    assert "backends:" in output
    for name in backends.BACKENDS:
        assert f"  {name}:" in output
