import math

import pytest

from weight_evolution import StagedSigmoid


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1000), (15, 0.1462), (30, 0.1762), (59, 0.1962), (60, 0.0400), (119, 0.0785), (120, 0.0200), (199, 0.0398)],
)
def test_published_cifar_rates(epoch, rate):
    assert StagedSigmoid.cifar()(0.2, epoch) == pytest.approx(rate, abs=5e-5)


def test_imagenet_stages():
    schedule = StagedSigmoid.imagenet()
    for epoch, divisor, since in [(0, 1, 0), (29, 1, 29), (30, 2, 0), (59, 2, 29), (60, 4, 0), (89, 4, 29)]:
        assert schedule(0.02, epoch) == pytest.approx(0.02 / divisor / (1 + math.exp(-since / 8)))


def test_lists_are_taken_and_it_is_a_value():
    assert StagedSigmoid([60, 120], [1.0, 2.5, 5.0], 15.0) == StagedSigmoid.cifar()
    assert StagedSigmoid((), (2.0,), 10.0)(0.2, 0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("milestones", "divisors", "tau", "message"),
    [
        ((60, 60), (1, 1, 1), 15, "milestones must be positive and ascending"),
        ((0,), (1, 1), 15, "milestones must be positive and ascending"),
        ((60,), (1,), 15, r"divisors must be one per stage \(2\), got 1"),
        ((60,), (1, 0), 15, "divisors must be positive"),
        ((60,), (1, float("nan")), 15, "divisors must be positive"),
        ((60,), (1, 2), 0, "tau must be positive"),
    ],
)
def test_bad_arguments(milestones, divisors, tau, message):
    with pytest.raises(ValueError, match=message):
        StagedSigmoid(milestones, divisors, tau)


@pytest.mark.parametrize("published", [StagedSigmoid.cifar, StagedSigmoid.imagenet])
def test_stages_of_another_length(published):
    whole, of = published(), 200 if published == StagedSigmoid.cifar else 90
    assert published(epochs=of) == whole
    assert published(of * 100) == StagedSigmoid([100 * m for m in whole.milestones], whole.divisors, 100 * whole.tau)
    for epoch in range(of):
        assert published(of * 150)(0.2, epoch * 150) == pytest.approx(whole(0.2, epoch))


def test_stages_of_ninety_epochs_and_of_few():
    assert StagedSigmoid.cifar(epochs=90) == StagedSigmoid((27, 54), (1.0, 2.5, 5.0), 6.75)
    assert StagedSigmoid.cifar(epochs=1) == StagedSigmoid((1, 2), (1.0, 2.5, 5.0), 0.075)


@pytest.mark.parametrize("published", [StagedSigmoid.cifar, StagedSigmoid.imagenet])
@pytest.mark.parametrize(("epochs", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError), ("90", TypeError)])
def test_bad_numbers_of_epochs(published, epochs, error):
    with pytest.raises(error, match="epochs must be an"):
        published(epochs=epochs)


def test_stages_that_a_run_never_reaches():
    schedule = StagedSigmoid.cifar()
    assert [schedule.beyond(epochs) for epochs in (121, 120, 60, 2)] == [(), (120,), (60, 120), (60, 120)]
    assert StagedSigmoid.cifar(epochs=2).beyond(2) == ()  # no room for three stages
