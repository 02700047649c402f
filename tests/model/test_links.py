"""Noticing that a module was replaced."""

from torch import nn

from weight_evolution.model.links import Links


def network():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.ReLU()), nn.Flatten())


def test_a_replaced_layer_or_block_is_noticed():
    model = network()
    links = Links(model, [model[0][0]])
    assert links.hold()
    conv, block = model[0][0], model[0]
    model[0][0] = nn.Conv2d(3, 4, 3)
    assert not links.hold()
    model[0][0] = conv
    assert links.hold()
    model[0] = nn.Sequential(conv, nn.BatchNorm2d(4))
    assert not links.hold()
    model[0] = block
    del model[0][0]
    assert not links.hold()


def test_other_modules_may_be_replaced():
    model = network()
    links = Links(model, [model[0][0]])
    model[0][1] = nn.Identity()
    model[1] = nn.Tanh()
    model.append(nn.Linear(2, 2))
    assert links.hold()


def test_the_model_itself_and_modules_that_are_not_in_it():
    conv = nn.Conv2d(3, 4, 3)
    assert Links(conv, [conv]).hold()
    assert Links(network(), [conv]).hold()
