"""The specification as plain Python loops: slow, shares nothing with the package; the reference is held against it."""

import math

import torch


def importances(weights, dims):
    """Importance of every filter, per tensor: L1 norm / number of kernels, in exact-ish float64."""
    result = []
    for weight, dim in zip(weights, dims, strict=True):
        filters = weight.double().movedim(dim, 0)
        channels = filters.shape[1] if filters.dim() > 1 else 1
        result.append([sum(abs(v) for v in f.flatten().tolist()) / channels for f in filters])
    return result


def match(layers, groups, rates, ratios, counters=None, limit=math.inf, zero_is_inferior=False):
    """Donors per layer, thresholds, n_low per layer, counters; `layers` holds float32 importances as Python floats."""
    counters = None if counters is None else list(counters)
    thresholds = []
    for g, rate in enumerate(rates):
        values = sorted(v for layer, group in zip(layers, groups, strict=True) if group == g for v in layer)
        thresholds.append(values[min(math.floor(len(values) * rate), len(values) - 1)] if values else 0.0)
    donors, n_lows = [], []
    for layer, g in zip(layers, groups, strict=True):
        n = len(layer)
        if ratios[g] is None:
            n_low = sum(v <= thresholds[g] for v in layer)
        else:
            n_low = 0
            n_global = sum(v < thresholds[g] or (zero_is_inferior and v == 0) for v in layer)
            if n_global > 0:
                bound = float(torch.tensor(ratios[g]) * torch.tensor(max(layer)))  # a float32 product
                n_local = sum(v <= bound for v in layer)
                if counters is not None:
                    if n_local == 0:
                        counters[g] += 1
                        if counters[g] >= limit:
                            n_local, counters[g] = 1, 0
                    else:
                        counters[g] = 0
                n_low = min(n_global, n_local)
        order = sorted(range(n), key=lambda j: (-layer[j], j))
        donor = [-1] * n
        for k in range(min(n_low, n - n_low)):
            donor[order[n - n_low + k]] = order[k]
        donors.append(donor)
        n_lows.append(n_low)
    return donors, thresholds, n_lows, counters


def crossover(weight, dim, donor, rule):
    """The weight after crossover, computed in float64 (element by element)."""
    result = weight.clone()
    filters = result.movedim(dim, 0)
    for q, p in enumerate(donor):
        if p < 0:
            continue
        mine, theirs = filters[q].double(), filters[p].double()
        kernel_dims = filters.dim() - 2
        height = 1 if kernel_dims <= 0 else filters.shape[-2] if kernel_dims > 1 else filters.shape[-1]
        if height == 1:
            own, other = float(mine.abs().sum()), float(theirs.abs().sum())
            if own + other > 0:
                a = own / (own + other)
                filters[q] = (a * mine + (1 - a) * theirs).to(weight.dtype)
            continue
        for c in range(filters.shape[1]):
            kernel, source = mine[c].flatten().tolist(), theirs[c].flatten().tolist()
            at = min(range(len(kernel)), key=lambda i: abs(kernel[i]))
            small, large = kernel[at], max(source, key=abs)
            new = list(kernel)
            if rule == "paper" and abs(small) + abs(large) > 0:
                a = abs(small) / (abs(small) + abs(large))
                new[at] = a * small + (1 - a) * large
            elif rule == "released" and small + large != 0:
                a = small / (small + large)
                new = [a * large + (1 - a) * v if v == small else v for v in kernel]
            filters[q, c] = torch.tensor(new, dtype=torch.float64).view_as(mine[c]).to(weight.dtype)
    return result
