"""A stack of networks against the same networks, each trained alone by torch.optim and UnitReactivation."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.stacked import Stack
from experiments.stacked_passes import FORMS
from weight_evolution import AsynchronousUpdate, UnitActivity, UnitAdamW, UnitReactivation, WeightEvolution

LEARNING_RATES = (1e-3, 3e-3, 1e-2)


def network(seed, norm=True, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [
        *(nn.Conv2d(1, 4, 3, bias=not norm), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)),
    ]
    return nn.Sequential(*layers).to(dtype)


def batches(iterations, dtype=torch.float64):
    """Random labels, each batch anew: units die of them."""
    draws = torch.Generator().manual_seed(0)
    for _ in range(iterations):
        images = torch.randn(3, 10, 1, 8, 8, generator=draws, dtype=dtype)
        yield images, torch.randint(3, (3, 10), generator=draws)


def train_alone(networks, optimizers, methods, iterations, dtype=torch.float64):
    for images, labels in batches(iterations, dtype):
        train_step_alone(networks, optimizers, images, labels)
        for method in methods:
            method()


def train_step_alone(networks, optimizers, images, labels):
    for own, optimizer, x, y in zip(networks, optimizers, images, labels, strict=True):
        optimizer.zero_grad()
        cross_entropy(own.train()(x), y).backward()
        optimizer.step()


def train_stacked(networks, optimizers, methods, iterations, dtype=torch.float64):
    stack = Stack(networks, optimizers)
    for images, labels in batches(iterations, dtype):
        stack.backward(images, labels)
        stack.step()
        for method in methods:
            method()
    return stack


def nothing():
    pass


def noted_step(method, reports):
    reports.append(method.step())


def both(make, method=None, *, iterations, dtype=torch.float64, **options):
    """Networks trained alone and stacked, and the methods' reports of either."""
    results = []
    for train in (train_alone, train_stacked):
        networks = [network(seed, dtype=dtype, **options) for seed in range(3)]
        optimizers = [make(own.parameters(), lr) for own, lr in zip(networks, LEARNING_RATES, strict=True)]
        revived = []
        methods = [nothing] * 3
        if method is not None:
            made = [method(*pair, seed) for seed, pair in enumerate(zip(networks, optimizers, strict=True))]
            methods = [partial(noted_step, one, revived) for one in made]
        train(networks, optimizers, methods, iterations, dtype)
        results.append((networks, [report.masks for report in revived if report is not None]))
    return results


def assert_equal(alone, stacked, rtol=1e-6):
    for one, other in zip(alone, stacked, strict=True):
        theirs = dict(other.named_parameters()) | dict(other.named_buffers())
        for name, tensor in (dict(one.named_parameters()) | dict(one.named_buffers())).items():
            torch.testing.assert_close(theirs[name], tensor, rtol=rtol, atol=rtol * float(tensor.detach().abs().max()))


def adam(parameters, lr):
    return torch.optim.Adam(parameters, lr, weight_decay=1e-3)


def adamw(parameters, lr):
    return torch.optim.AdamW(parameters, lr, betas=(0.8, 0.99), weight_decay=1e-2)


def own_age(parameters, lr):
    return UnitAdamW(parameters, lr, weight_decay=1e-2)


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-3)


def plain_sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr)


@pytest.mark.parametrize("make", [adam, adamw, own_age, sgd, plain_sgd])
def test_training_is_that_of_each_network_alone(make):
    (alone, _), (stacked, _) = both(make, iterations=50)
    assert_equal(alone, stacked)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("make", "norm"), [(adam, False), (adam, True), (own_age, False), (own_age, True), (sgd, False)]
)
def test_reactivation_is_that_of_each_network_alone(make, norm):
    """The same units start anew with the same weights, and go on alike."""

    def method(network, optimizer, seed):
        return UnitReactivation(network, optimizer, every=10, batches=4, threshold=0.6, seed=seed)

    (alone, masks), (stacked, other_masks) = both(make, method, iterations=120, norm=norm)
    assert sum(int(mask.sum()) for report in masks for mask in report.values()) > 12
    assert len(masks) == len(other_masks) == 36
    for report, other in zip(masks, other_masks, strict=True):
        assert all(torch.equal(report[name], other[name]) for name in report)
    assert_equal(alone, stacked)


def test_single_precision():
    (alone, _), (stacked, _) = both(adam, iterations=20, dtype=torch.float32)
    assert_equal(alone, stacked, rtol=1e-4)


def test_methods_on_the_networks_of_a_stack():
    """Whatever writes to a network writes to the stack."""
    networks = [network(seed) for seed in range(3)]
    optimizers = [adam(own.parameters(), 1e-2) for own in networks]
    stack = Stack(networks, optimizers)
    images, labels = next(batches(1))
    before = stack.predict(images)
    WeightEvolution(networks[1], conv_rate=1.0, local_ratio=1.0, schedule=lambda base, epoch: base).step()
    after = stack.predict(images)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])
    for own, outputs, x in zip(networks, after, images, strict=True):
        torch.testing.assert_close(own.eval()(x), outputs)
    stack.backward(images, labels)
    stacked = [parameter.grad.clone() for parameter in networks[0].parameters()]
    networks[0].train().zero_grad()
    cross_entropy(networks[0](images[0]), labels[0]).backward()
    for parameter, grad in zip(networks[0].parameters(), stacked, strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_learning_rates_are_read_at_every_step():
    networks = [network(seed) for seed in range(3)]
    optimizers = [adam(own.parameters(), 1e-2) for own in networks]
    stack = Stack(networks, optimizers)
    optimizers[1].param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(networks)
    stack.backward(*next(batches(1)))
    stack.step()
    moved = [not torch.equal(a[0].weight, b[0].weight) for a, b in zip(networks, before, strict=True)]
    assert moved == [True, False, True]


def test_optimizers_of_any_class_make_their_own_steps():
    makers = (
        lambda parameters: torch.optim.Adam(parameters, 1e-2, amsgrad=True),
        lambda parameters: torch.optim.Adam(parameters, 1e-3, fused=True),
        lambda parameters: torch.optim.Rprop(parameters, 1e-3),
    )
    results = []
    for stacked in (False, True):
        networks = [network(seed, norm=False) for seed in range(3)]
        optimizers = [make(own.parameters()) for make, own in zip(makers, networks, strict=True)]
        if stacked:
            stack = Stack(networks, optimizers, own_steps=True)
            for images, labels in batches(20):
                stack.backward(images, labels)
                stack.step()
        else:
            train_alone(networks, optimizers, [nothing] * 3, 20)
        results.append(networks)
    assert_equal(*results)


def test_any_loss_and_parameters_of_before():
    networks = [network(seed, norm=False) for seed in range(3)]
    stack = Stack(networks, [plain_sgd(own.parameters(), 1e-2) for own in networks])
    before = copy.deepcopy(networks)
    kept = stack.copy_parameters()
    images, _ = next(batches(1))
    weights = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    for _ in range(2):  # the second gradient is not added to the first
        outputs = stack.differentiate(images, lambda outputs: outputs.square().sum((1, 2)) * weights)
    assert not outputs.requires_grad
    for own, old, x, weight, output in zip(networks, before, images, weights, outputs, strict=True):
        torch.testing.assert_close(output, old(x))
        (old(x).square().sum() * weight).backward()
        for one, other in zip(own.parameters(), old.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    stack.step()
    torch.testing.assert_close(stack.predict(images, kept), outputs)
    assert not torch.equal(stack.predict(images)[2], outputs[2])


def test_predictions_call_no_hook_and_change_nothing():
    networks = [network(seed) for seed in range(3)]
    stack = Stack(networks, [adam(own.parameters(), 1e-2) for own in networks])
    images, _ = next(batches(1))
    activity = UnitActivity(networks[1]).start()
    before = copy.deepcopy(networks)
    stack.predict(images)
    assert_equal(networks, before, rtol=0)
    with pytest.raises(RuntimeError, match="no forward pass"):
        activity.activations()
    stack.forward(images)
    activity.stop()
    with UnitActivity(before[1]) as wanted:
        before[1](images[1])
    torch.testing.assert_close(activity.activations(), wanted.activations())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, i: torch.optim.Rprop(p, 1e-3), "must be Adam, "),
        (lambda p, i: [adam, sgd][i % 2](p, 1e-3), "one class"),
        (lambda p, i: torch.optim.Adam(p, 1e-3, eps=1e-8 * (1 + i)), "same options"),
        (lambda p, i: torch.optim.Adam(list(p)[1:], 1e-3), "all parameters"),
        (lambda p, i: torch.optim.SGD([{"params": [x], "momentum": 0.1 * (x.dim() > 1)} for x in p]), "same options"),
        (lambda p, i: torch.optim.Adam(p, 1e-3, amsgrad=True), "amsgrad"),
        (lambda p, i: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True), "nesterov"),
    ],
)
def test_refused(make, message):
    networks = [network(seed) for seed in range(3)]
    optimizers = [make(own.parameters(), i) for i, own in enumerate(networks)]
    weights = [own[0].weight.data_ptr() for own in networks]
    with pytest.raises(ValueError, match=message):
        Stack(networks, optimizers)
    assert [own[0].weight.data_ptr() for own in networks] == weights


def test_refused_networks():
    for change, message in (
        (lambda own: own.append(nn.Linear(3, 3)), r"networks\[1\] is another"),
        (lambda own: own.float(), r"networks\[1\] is another"),
        (lambda own: own[0].weight.requires_grad_(False), "frozen"),
    ):
        networks = [network(seed, norm=False) for seed in range(2)]
        change(networks[1])
        optimizers = [adam(own.parameters(), 1e-2) for own in networks]
        weight = networks[0][0].weight.data_ptr()
        with pytest.raises(ValueError, match=message):
            Stack(networks, optimizers)
        assert networks[0][0].weight.data_ptr() == weight


def test_refused_after_a_step():
    networks = [network(seed) for seed in range(3)]
    optimizers = [adam(own.parameters(), 1e-2) for own in networks]
    train_alone(networks, optimizers, [nothing] * 3, 1)
    with pytest.raises(ValueError, match="not have made a step"):
        Stack(networks, optimizers)
    with pytest.raises(ValueError, match="one for each"):
        Stack(networks, optimizers[:2])


def plain_network(seed, dtype=torch.float64):
    """Of layers that all forms can run."""
    torch.manual_seed(seed)
    layers = [
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 3, 3, padding=1, bias=False), nn.Conv2d(3, 6, 1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    ]
    return nn.Sequential(*layers).to(dtype)


def in_groups(network, lr, decay):
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": vectors, "weight_decay": 0.0, "lr": lr / 2}, {"params": matrices, "weight_decay": decay}]
    return torch.optim.SGD(groups, lr, momentum=0.9)


@pytest.mark.parametrize("form", FORMS)
def test_forms_groups_decays_and_hooks(form):
    """Rates and decays differ by network and group; activity and a subset of filters go by the hooks of either kind."""
    results = []
    for stacked in (False, True):
        networks = [plain_network(seed) for seed in range(3)]
        decays = (0.0, 1e-2, 1e-1)
        optimizers = [in_groups(*each) for each in zip(networks, LEARNING_RATES, decays, strict=True)]
        stack = Stack(networks, optimizers, form=form) if stacked else None
        AsynchronousUpdate(optimizers[1], networks[1], 0.5)
        reactivation = UnitReactivation(networks[2], optimizers[2], every=10, batches=4, threshold=0.6)
        masks = []
        for images, labels in batches(30):
            if stack is not None:
                stack.backward(images, labels)
                stack.step()
            else:
                train_step_alone(networks, optimizers, images, labels)
            masks.append(reactivation.step())
        results.append((networks, [report.masks for report in masks if report is not None]))
        predicted = next(batches(1))[0]
        if stack is not None:
            wanted = torch.stack([own.eval()(x) for own, x in zip(networks, predicted, strict=True)])
            torch.testing.assert_close(stack.predict(predicted), wanted)
    (alone, masks), (stacked, other_masks) = results
    assert len(masks) == 3
    assert any(mask.any() for report in masks for mask in report.values())
    for report, other in zip(masks, other_masks, strict=True):
        assert all(torch.equal(report[name], other[name]) for name in report)
    assert_equal(alone, stacked)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(1, 3, 3), "keep the size"),
        (nn.Conv2d(1, 3, 3, padding=1, stride=2), "keep the size"),
        (nn.GELU(), "GELU"),
        (nn.BatchNorm2d(1, momentum=None), "momentum"),
    ],
)
def test_layers_that_products_cannot_run(layer, message):
    networks = [nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)) for _ in range(2)]
    for own in networks:
        own(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=message):
        Stack(networks, [plain_sgd(own.parameters(), 1e-2) for own in networks], form="products")
    with pytest.raises(ValueError, match="form must be"):
        Stack(networks, [plain_sgd(own.parameters(), 1e-2) for own in networks], form="other")
