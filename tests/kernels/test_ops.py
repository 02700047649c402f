"""The operators inside PyTorch: opcheck, fake kernels, full-graph compilation, version counters, tied weights."""

import math

import pytest
import torch

import we_kernels as wk


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(7, 5, 3, 3, generator=generator),
        torch.randn(4, 9, 1, 1, generator=generator),
        torch.randn(11, generator=generator).double(),
    ]


RATES = torch.tensor([0.5, 0.3], dtype=torch.float64)


def evolve_arguments():
    counter = torch.zeros(2, dtype=torch.int32)
    return (tensors(), [0, 1, 0], [0, 0, 1], "paper", RATES, [0.9, -1.0], counter, 1.5, [True, False])


@pytest.mark.parametrize("starved", [True, False])
def test_opcheck(backend, opcheck, starved):
    starvation = torch.zeros(2, dtype=torch.int32) if starved else None
    importance = torch.rand(27)
    donor = torch.full((27,), -1, dtype=torch.int32)
    donor[2] = 5
    ops = torch.ops.we_kernels
    opcheck(ops.filter_importance.default, (tensors(), [0, 1, 0], [0, 0, 1]))
    opcheck(
        ops.match_filters.default,
        (importance, [7, 9, 11], [0, 0, 1], RATES, [0.9, -1.0], starvation, 1.5 if starved else math.inf, [False] * 2),
    )
    opcheck(ops.crossover_.default, (tensors(), [0, 1, 0], [0, 0, 1], donor, "released", True))
    opcheck(ops.evolve_.default, evolve_arguments())


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="torch 2.7 has no such tag")
def test_no_operator_gets_into_a_graph_of_inductor():
    """Their tables would lie in a memory pool that Inductor resets."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("we_kernels::")]
    assert len(names) >= 12
    for name in names:
        operator = getattr(torch.ops.we_kernels, name.removeprefix("we_kernels::")).default
        assert torch.Tag.cudagraph_unsafe in operator.tags, name


def test_fakes_have_the_real_shapes():
    arguments = evolve_arguments()
    real = torch.ops.we_kernels.evolve_(*arguments)
    with torch._subclasses.FakeTensorMode() as mode:
        weights, *rest = arguments
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in rest]
        fake = torch.ops.we_kernels.evolve_([mode.from_tensor(weight) for weight in weights], *fakes)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def test_compiles_into_one_graph():
    def step(weights, starvation):
        bank = wk.FilterBank(weights, groups=[0, 0, 1])
        importance = wk.filter_importance(bank)
        wk.match_filters(bank, importance, rate=0.4, local_ratio=0.5)
        return wk.evolve_(bank, rate=0.5, local_ratio=0.9, starvation=starvation, starvation_limit=1.0).donor + 1

    eager, compiled = tensors(), tensors()
    counters = [torch.zeros(2, dtype=torch.int32) for _ in range(2)]
    expected = step(eager, counters[0])
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled, counters[1])
    assert torch.equal(found, expected)
    assert int((expected > 0).sum()) > 0
    assert torch.equal(counters[0], counters[1])
    for a, b, before in zip(eager, compiled, tensors(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, before)


def test_compiles_with_a_bank_from_outside():
    weights = tensors()
    bank = wk.FilterBank(weights)
    expected = wk.filter_importance(bank) * 2
    assert torch.equal(
        torch.compile(lambda: wk.filter_importance(bank) * 2, fullgraph=True, backend="aot_eager")(), expected
    )


def test_parameters_and_their_version_counters(backend):
    weights = [torch.nn.Parameter(tensor) for tensor in tensors()]
    starvation = torch.zeros(1, dtype=torch.int32)
    bank = wk.FilterBank(weights)
    loss = sum((weight.double() ** 2).sum() for weight in weights)
    versions = [weight._version for weight in weights]
    wk.evolve_(bank, rate=0.5, local_ratio=None, starvation=starvation, starvation_limit=1.0)
    assert all(weight._version > version for weight, version in zip(weights, versions, strict=True))
    assert starvation._version > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tied_weights_are_evolved_once(backend):
    single, tied = tensors(3)[0], tensors(3)[0]
    once = wk.evolve_(wk.FilterBank([single]), rate=0.5, local_ratio=None).donor
    bank = wk.FilterBank([tied, tied, tied[:]])
    twice = wk.evolve_(bank, rate=0.5, local_ratio=None).donor
    assert bank.position == (0, 0, 0)
    assert once.tolist() == twice.tolist()
    assert torch.equal(single, tied)


def test_empty_bank(backend):
    bank = wk.FilterBank([])
    assert wk.filter_importance(bank).shape == (0,)
    assert wk.match_filters(bank, torch.empty(0), rate=0.2).donor.dtype == torch.int32
    wk.crossover_(bank, torch.empty(0, dtype=torch.int32))
    assert wk.evolve_(bank, rate=0.2).donor.shape == (0,)


def test_layers_of_one_filter_and_of_none(backend):
    weights = [torch.randn(1, 3, 3, 3), torch.randn(0, 3, 3, 3), torch.randn(2, 3, 3, 3) * 0.01]
    before = [weight.clone() for weight in weights]
    donor = wk.evolve_(wk.FilterBank(weights), rate=0.4, local_ratio=1.0).donor
    assert donor[0] == -1
    assert sorted(donor[1:].tolist()) in ([-1, 0], [-1, 1])
    assert torch.equal(weights[0], before[0])


def test_moved_storage_is_found_again(backend):
    weight = torch.nn.Parameter(torch.randn(6, 2, 3, 3))
    bank = wk.FilterBank([weight])
    first = wk.filter_importance(bank)
    old = weight.data
    weight.data = weight.data * 2
    torch.testing.assert_close(wk.filter_importance(bank), 2 * first)
    kept = old.clone()
    wk.evolve_(bank, rate=0.5, local_ratio=1.0)
    assert torch.equal(old, kept)
    weight.data = weight.data.to(memory_format=torch.channels_last).double()
    assert wk.filter_importance(bank).shape == (6,)
