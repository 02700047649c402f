import math

import pytest
import torch

from weight_evolution.health.spectrum import spectrum

SHARES = (0.5, 0.9, 0.99)


@pytest.mark.parametrize("shape", [(7, 40), (40, 7), (12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_against_the_decomposition(shape, dtype, scale):
    torch.manual_seed(sum(shape))
    rows = (torch.randn(shape, dtype=torch.float64) * torch.logspace(0, -2, shape[1], dtype=torch.float64)).to(dtype)
    values = torch.linalg.svdvals(rows.double())
    shares = values / values.sum()
    held = values.square().cumsum(0) / values.square().sum()
    found = spectrum(rows * scale, SHARES)
    assert found.effective_rank == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-2)
    assert found.ranks == {share: int((held < share).sum()) + 1 for share in SHARES}


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_of_a_given_rank(rank):
    torch.manual_seed(rank)
    left, right = torch.linalg.qr(torch.randn(300, rank))[0], torch.linalg.qr(torch.randn(200, rank))[0]
    found = spectrum(left @ right.mT, SHARES)
    assert found.effective_rank == pytest.approx(rank, rel=1e-3)
    assert found.ranks[0.99] == rank


def test_zeros():
    assert spectrum(torch.zeros(3, 5), SHARES).ranks == dict.fromkeys(SHARES, 0)
    assert spectrum(torch.zeros(3, 5), SHARES).effective_rank == 0
