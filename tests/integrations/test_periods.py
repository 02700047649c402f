"""When an evolution acts that is asked often."""

import json

import pytest
from torch.optim import SGD

from tests.integrations.networks import OPTIONS, network, same, weights
from weight_evolution import StagedSigmoid
from weight_evolution.integrations.periods import PeriodicEvolution


def periodic(model=None, *, total=10, every=1, done=0, **options):
    model = model or network()
    optimizer = SGD(model.parameters(), lr=0.1)
    return PeriodicEvolution(model, optimizer, total=total, every=every, done=done, options={**OPTIONS, **options})


@pytest.mark.parametrize(
    ("every", "total", "done", "asked", "acted"),
    [
        (1, 4, 0, [0, 0, 1, 1, 2, 3, 3, 4], [0, 1, 2]),  # not after the last
        (2, 9, 0, range(9), [1, 3, 5, 7]),
        (3, None, 0, [1, 2, 4, 5, 8], [3, 7]),  # periods that ended in between
        (1, 9, 3, [3, 3, 4], [3]),
        (1, None, 0, [2, 1, 2, 3], [1, 2]),  # never back
    ],
)
def test_when_it_acts(every, total, done, asked, acted):
    evolution = periodic(total=total, every=every, done=done)
    reports = [evolution.step(each) for each in asked]
    assert [report.epoch for report in reports if report] == acted


def test_a_state_goes_through_json_and_goes_on():
    model = network()
    whole = periodic(model)
    whole.step(1)
    state, then = json.loads(json.dumps(whole.state_dict())), weights(model)
    other = network()
    other.load_state_dict(then)
    resumed = periodic(other)
    resumed.load_state_dict(state)
    assert resumed.step(1) is None  # was done
    for done in (2, 3):
        assert whole.step(done).inferior == resumed.step(done).inferior
    assert same(weights(model), weights(other))
    with pytest.raises(ValueError, match="not a state_dict of EvolutionCallback"):
        resumed.load_state_dict({"format": 1})
    with pytest.raises(ValueError, match="saved with conv_rate"):
        periodic(conv_rate=0.1).load_state_dict(state)


def test_options():
    assert periodic(total=90).evolution.schedule == StagedSigmoid.cifar(epochs=90)
    assert periodic(total=None).evolution.schedule == StagedSigmoid.cifar()
    assert periodic(total=90, schedule=None).evolution.schedule == StagedSigmoid.cifar(epochs=90)
    own = StagedSigmoid.imagenet(epochs=90)
    assert periodic(total=90, schedule=own, epochs=80).evolution.schedule == own
    assert periodic(total=90, epochs=80).evolution.epochs == 80
