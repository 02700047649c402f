import math

import pytest
import torch

import we_kernels as wk
from benchmarks import shapes
from benchmarks.case import LOCAL_RATIO, Case


@pytest.mark.parametrize(
    ("convs", "layers", "filters", "weights"),
    [
        (shapes.resnet_cifar(20), 19, 688, 267_696),
        (shapes.resnet_cifar(56), 55, 2_032, 848_304),
        (shapes.resnet_cifar(56, "B"), 57, 2_128, 850_864),
        (shapes.resnet_cifar(110), 109, 4_048, 1_719_216),
        (shapes.mobilenet_v2(), 52, 17_056, 2_189_760),
        (shapes.resnet50(), 53, 26_560, 23_454_912),
        (shapes.convnext_l(), 112, 165_312, 195_977_664),
        (shapes.stack_1b(), 107, 109_568, 1_000_369_152),
    ],
    ids=["resnet20", "resnet56", "resnet56-B", "resnet110", "mobilenetv2", "resnet50", "convnext_l", "stack_1b"],
)
def test_totals(convs, layers, filters, weights):
    assert len(convs) == layers
    assert sum(conv.filters for conv in convs) == filters
    assert sum(math.prod(conv.shape) for conv in convs) == weights


def test_every_convolution_reads_what_an_earlier_one_made():
    for make in shapes.MODELS.values():
        made = {3}
        for conv in make():
            assert conv.channels * conv.groups in made
            made.add(conv.filters)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "mobilenetv2"])
def test_shapes_are_those_of_the_package_models(name):
    from weight_evolution.training import models

    network = models.make_model(name, in_channels=3, num_classes=10)
    convs = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.shape for conv in shapes.MODELS[name]()] == convs


@pytest.mark.parametrize(("depth", "option"), [(21, "A"), (2, "A"), (20, "C")])
def test_unknown_networks_are_refused(depth, option):
    with pytest.raises(ValueError, match="depth" if option == "A" else "option"):
        shapes.resnet_cifar(depth, option)


def test_weights_depend_on_the_seed_only():
    convs = shapes.resnet_cifar(20)
    first, again, other = (shapes.make_weights(convs, seed) for seed in (0, 0, 1))
    for part in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first[part], again[part], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first[part], other[part], strict=True))


@pytest.mark.parametrize(("rate", "low", "high"), [(0.2, 0.1, 0.2), (0.02, 0.01, 0.03)])
def test_a_realistic_part_of_the_filters_is_replaced(rate, low, high):
    case = Case("resnet56", rate)
    donor = wk.match_filters(case.bank, wk.filter_importance(case.bank), rate=rate, local_ratio=LOCAL_RATIO).donor
    assert low < float((donor >= 0).float().mean()) < high


def test_restore_undoes_a_step():
    case = Case("resnet20", norms=True)
    before = [weight.clone() for weight in case.weights]
    wk.evolve_(case.bank, rule=case.rule, **case.selection_arguments)
    case.starvation.fill_(7)
    assert any(not torch.equal(a, b) for a, b in zip(case.weights, before, strict=True))
    case.restore()
    assert all(torch.equal(a, b) for a, b in zip(case.weights, before, strict=True))
    assert case.starvation.tolist() == [0, 0, 0]


def test_crossover_bytes_count_two_reads_and_a_write():
    case = Case("resnet20")
    donor = torch.full((case.bank.num_filters,), -1, dtype=torch.int32)
    donor[0], donor[-1] = 1, 0  # rows of 3 x 3 x 3 and of 64 x 3 x 3 elements
    assert case.crossover_bytes(donor) == 3 * 4 * (27 + 576)
