"""Epochs, rates, ranks and seeds may be NumPy's integers and floats, as a configuration or a sweep makes them."""

import numpy as np
import torch
from torch import nn

import weight_evolution as we


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_evolution():
    plain, numpy = network(), network()
    we.WeightEvolution(plain, starvation_divisor=3).step(epoch=4)
    evolution = we.WeightEvolution(numpy, starvation_divisor=np.float32(3))
    evolution.step(epoch=np.int64(4))
    assert same(plain, numpy)
    assert type(evolution.state_dict()["epoch"]) is int


def test_projection():
    plain, numpy = network(), network()
    we.LowRankProjection(plain, ranks={"0": 3}).step()
    we.LowRankProjection(numpy, ranks={"0": np.int32(3)}).step()
    assert same(plain, numpy)


def test_asynchronous_update():
    plain, numpy = network(), network()
    for model, rate, seed in ((plain, 0.5, 7), (numpy, np.float64(0.5), np.uint32(7))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        we.AsynchronousUpdate(optimizer, model, rate=rate, seed=seed)
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        optimizer.step()
    assert same(plain, numpy)


def test_grafting():
    plain, numpy = [network(0), network(1)], [network(0), network(1)]
    we.FilterGrafting(plain, strength=0.4, bins=10).step()
    we.FilterGrafting(numpy, strength=np.float64(0.4), bins=np.int16(10)).step()
    assert all(same(a, b) for a, b in zip(plain, numpy, strict=True))
