"""The bad input table: each a clear error that names the argument, with nothing changed."""

import subprocess
import sys

import pytest
import torch

import we_kernels as wk
from we_kernels import BackendUnavailableError, backends

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
        "quantized": (lambda: wk.FilterBank([quantized()]), TypeError, r"weights\[0\] must be float32.*qint8"),
        "meta": (lambda: wk.FilterBank([W(2, 3, device="meta")]), TypeError, r"weights\[0\] is a meta tensor"),
        "lazy": (lambda: wk.FilterBank([lazy]), TypeError, "run one forward pass"),
        "sparse": (lambda: wk.FilterBank([torch.eye(3).to_sparse()]), TypeError, "dense"),
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


def quantized():
    return torch.quantize_per_tensor(W(4, 2, 3, 3), 0.1, 0, torch.qint8)


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


def resized(weight):
    weight.resize_(7, 2, 3, 3)


def freed(weight):
    weight.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (resized, r"conv.weight was resized from \(6, 2, 3, 3\) to \(7, 2, 3, 3\); make a new FilterBank"),
        (freed, "the storage of conv.weight was freed"),
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
    monkeypatch.setattr(backends, "unavailable", lambda name, device: f"no {name} on {device.type}")
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
    assert backends.choose(torch.device("cpu"), "evolve_") is backends.load("torch")
    assert wk.info()["forced backend"] == "torch"


def test_info_command():
    result = subprocess.run([sys.executable, "-m", "we_kernels"], capture_output=True, text=True, check=True)
    assert "backends:" in result.stdout
    for name in backends.NAMES:
        assert f"  {name}:" in result.stdout
