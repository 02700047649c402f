"""The projection as the specification states it, with one float64 SVD."""

import torch


def project(weight, rank, row_scale=None, energy_transfer=True):
    """The projected weight, float64."""
    matrix = weight.detach().double().reshape(weight.shape[0], -1)
    if row_scale is not None:
        matrix = row_scale.double()[:, None] * matrix
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    kept = s.clone()
    kept[rank:] = 0
    if energy_transfer:
        kept *= (s.square().sum() / kept.square().sum()).sqrt()
    matrix = (u * kept) @ vt
    if row_scale is not None:
        matrix = (row_scale / (row_scale**2 + 1e-5)).double()[:, None] * matrix
    return matrix.reshape(weight.shape)


def scale_of(norm):
    """What a BatchNorm multiplies each channel by, float64 [N]."""
    gamma = 1.0 if norm.weight is None else norm.weight.detach().double()
    return gamma / (norm.running_var.double() + norm.eps).sqrt()


def rank_of(weight):
    """Numerical rank of the weight's matrix."""
    return int(torch.linalg.matrix_rank(weight.detach().double().reshape(weight.shape[0], -1), rtol=1e-5))
