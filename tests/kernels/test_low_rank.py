"""`project_low_rank_` against a float64 singular value decomposition, and the recorded cases."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.library import opcheck

import we_kernels as wk
from tests.banks import FORMATS, place
from tests.processes import environment
from we_kernels.low_rank import batch, bounds, parallel, projection, stack, subspace

CASES = sorted((Path(__file__).parents[1] / "data" / "low_rank").glob("*.json"))


@pytest.fixture(params=["torch", None], ids=["reference", "fast"])
def implementation(request):
    """The reference and what runs when nothing is forced."""
    if request.param is None:
        yield None
    else:
        with wk.use_backend(request.param):
            yield request.param


@pytest.fixture
def ways(monkeypatch):
    """Counts the layers that each way settles."""
    counts = {find.__name__: 0 for find in projection.WAYS}

    def counted(find):
        def call(*task):
            result = find(*task)
            counts[find.__name__] += int((result.status != bounds.OPEN).sum())
            return result

        return call

    monkeypatch.setattr(projection, "WAYS", [counted(find) for find in projection.WAYS])
    return counts


def random_matrix(rows, columns, spectrum, seed=0):
    """float64 with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    n = min(rows, columns)
    u, v = (
        torch.linalg.qr(torch.randn(side, n, generator=generator, dtype=torch.float64))[0] for side in (rows, columns)
    )
    return (u * torch.as_tensor(spectrum, dtype=torch.float64)) @ v.mT


def spectra(n):
    i = torch.arange(n, dtype=torch.float64)
    return {
        "flat": torch.ones(n),
        "linear": 1 - i / n,
        "two clusters": torch.where(i < n // 3, 1.0, 0.1),
        "cluster around the cut": torch.where((i > n // 5) & (i < n // 2), 0.5 + 1e-6 * i, 2 - i / n),
        "one value leads": torch.where(i < 1, 1.0, 0.01),
        "decay 0.9": 0.9**i,
        "decay 0.5": 0.5**i,
        "power law": (1 + i) ** -2,
        "small tail": torch.where(i < 0.4 * n, 1.0, 1e-3 * (1 - i / n)),
        "rank deficient": torch.where(i < n // 4, 1.0, 0.0),
    }


def truncated(matrix, rank):
    """The projection of a matrix, float64, without energy transfer; and its singular values."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], s


def expected(weight, rank, scale=None, dim=0, transfer=True):
    """What the specification says, in float64, shaped like the weight."""
    rows = weight.double().movedim(dim, 0)
    matrix = rows.flatten(1)
    a = torch.ones(len(matrix), dtype=torch.float64) if scale is None else scale.double()
    projection, s = truncated(a[:, None] * matrix, rank)
    if transfer:
        projection *= (s.square().sum() / s[:rank].square().sum()).sqrt()
    if scale is not None:
        projection *= (a / (a * a + 1e-5))[:, None]
    return projection.view(rows.shape).movedim(0, dim)


def assert_close(found, right, tolerance=1e-5):
    assert (found.double() - right).norm() <= tolerance * right.norm()


def assert_best(before, after, rank, kept):
    """Rank exact, distance and kept energy within what is promised of the optimum."""
    matrix, projection = before.double().flatten(1), after.double().flatten(1)
    s = torch.linalg.svdvals(matrix)
    eps = torch.finfo(after.dtype).eps
    best, norm = s[rank:].norm(), s.norm()
    rounding = 16 * eps * norm  # of the result to its dtype
    assert (matrix - projection).norm() <= best * (1 + 1e-4) + rounding
    assert torch.linalg.svdvals(projection)[rank] <= 16 * eps * s[0]
    assert kept == pytest.approx(float(s[:rank].square().sum()), rel=1e-5)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_case(path, implementation):
    case = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    weights = [arrays[f"before/{layer}.weight"] for layer in case["layers"]]
    scales = None
    if case["batch_norm_rectification"]:
        norms = [f"before/{layer.replace('conv', 'bn')}" for layer in case["layers"]]
        scales = [arrays[f"{bn}.weight"] / (arrays[f"{bn}.running_var"] + case["epsilon"]).sqrt() for bn in norms]
    result = wk.project_low_rank_(weights, case["ranks"], scales)
    assert not result.skipped.any()
    for i, layer in enumerate(case["layers"]):
        after = arrays[f"after/{layer}.weight"]
        torch.testing.assert_close(weights[i], after, rtol=0, atol=1e-4 * float(after.abs().max()))
        s = torch.linalg.svdvals(weights[i].flatten(1).double())
        torch.testing.assert_close(s, arrays[f"singular_values_after/{layer}"], rtol=0, atol=1e-4 * float(s[0]))
        if scales is None:
            before = arrays[f"singular_values_before/{layer}"].square()
            assert float(result.energy_before[i]) == pytest.approx(float(before.sum()), rel=1e-5)
            assert float(result.energy_kept[i]) == pytest.approx(float(before[: case["ranks"][i]].sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(16, 147), (130, 96), (64, 64)])
@pytest.mark.parametrize("spectrum", spectra(4))
def test_accuracy(spectrum, shape, dtype, implementation):
    n = min(shape)
    before = random_matrix(*shape, spectra(n)[spectrum]).to(dtype)
    after = before.clone()
    result = wk.project_low_rank_([after], int(0.4 * n), energy_transfer=False)
    assert not result.skipped.any()
    assert_best(before, after, int(0.4 * n), float(result.energy_kept))


@pytest.mark.parametrize("spectrum", ["decay 0.9", "power law", "small tail"])
def test_accuracy_of_a_large_layer(spectrum):
    before = random_matrix(320, 512, spectra(320)[spectrum]).float()
    after = before.clone()
    result = wk.project_low_rank_([after], 128, energy_transfer=False)
    assert_best(before, after, 128, float(result.energy_kept))


def test_the_way_follows_from_the_spectrum(ways):
    easy, steep = (random_matrix(40, 90, spectra(40)[name]) for name in ("linear", "decay 0.5"))
    wk.project_low_rank_([easy.float(), steep.float()], 16)
    assert ways == {"iterate": 0, "decompose": 1, "decompose_precisely": 1}
    wk.project_low_rank_([steep.double(), easy.double()], 16)
    assert ways == {"iterate": 0, "decompose": 3, "decompose_precisely": 1}
    wk.project_low_rank_([random_matrix(40, 90, 0.4 ** torch.arange(40))], 20)
    assert ways["decompose_precisely"] == 2


def test_less_than_the_rank_is_settled_too(ways):
    """Exactly zero beyond the first of three directions: no Gram matrix can tell the second from the fourth."""
    weight, bases = torch.zeros(8, 20), wk.LowRankBases()
    weight[3] = torch.arange(20.0)
    before = weight.clone()
    wk.project_low_rank_([weight], 3, bases=bases)
    assert sum(ways.values()) == 1
    assert_close(weight, before)
    basis = bases.state_dict()["0"]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3))


def test_energy_is_transferred(implementation):
    before = random_matrix(24, 63, torch.linspace(2, 1, 24)).float()
    after = before.clone()
    result = wk.project_low_rank_([after], 7)
    assert after.norm() == pytest.approx(float(before.norm()), rel=1e-5)
    assert float(result.energy_kept / result.energy_before) < 0.6
    assert_close(after, expected(before, 7))


@pytest.mark.parametrize("shape", [(12, 5, 3, 3), (40, 3, 3, 1)], ids=["wide", "tall"])
@pytest.mark.parametrize("transfer", [True, False])
def test_row_scale(shape, transfer, implementation):
    torch.manual_seed(1)
    before = torch.randn(shape)
    scale = torch.randn(shape[0])
    scale[3] = 0.0
    for given in (scale, scale.double()):
        after = before.clone()
        result = wk.project_low_rank_([after], 4, [given], energy_transfer=transfer)
        assert_close(after, expected(before, 4, scale, transfer=transfer))
        energy = (scale.view(-1, 1, 1, 1) * before).double().square().sum()
        assert float(result.energy_before) == pytest.approx(float(energy), rel=1e-5)
        assert not after[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", [(9, 14), (11, 8, 3), (10, 7, 3, 2), (6, 9, 2, 1, 3)])
def test_layouts_and_dtypes(shape, dim, memory_format, dtype, implementation):
    torch.manual_seed(2)
    values = torch.randn(shape).to(dtype)
    case = place(values, memory_format, dim)
    wk.project_low_rank_([case.weight], 4, filter_dim=dim)
    right = expected(values, 4, dim=dim)
    assert_close(case.weight, right, max(1e-5, float(torch.finfo(dtype).eps)))
    assert case.guards_intact()


def test_bfloat16_is_rounded_once(implementation):
    torch.manual_seed(3)
    before = torch.randn(32, 10, 3, 3).bfloat16()
    after = before.clone()
    wk.project_low_rank_([after], 9)
    exact = expected(before, 9)
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((after.double() - exact).abs() <= 0.501 * spacing + 1e-5 * exact.abs().max()).all()


def layers(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(12, 5, 3, 3), (30, 7), (12, 5, 3, 3), (12, 45), (20, 4, 1, 1), (8, 6, 3), (12, 5, 3, 3)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


RANKS = [5, 3, 5, 5, 2, 8, 4]


def row_scales():
    torch.manual_seed(4)
    return [torch.rand(12), None, None, torch.rand(12), torch.rand(20).double(), None, torch.rand(12)]


def test_together_equals_one_by_one(implementation):
    together, single = layers(), layers()
    scales = row_scales()
    result = wk.project_low_rank_(together, RANKS, scales)
    for i, weight in enumerate(single):
        alone = wk.project_low_rank_([weight], RANKS[i], [scales[i]])
        torch.testing.assert_close(weight, together[i], rtol=0, atol=1e-5)
        assert float(alone.energy_kept) == pytest.approx(float(result.energy_kept[i]), rel=1e-6)
        assert float(alone.energy_before) == pytest.approx(float(result.energy_before[i]), rel=1e-6)


def test_full_rank_is_left_alone(implementation):
    weights = layers()
    before = [weight.clone() for weight in weights]
    result = wk.project_low_rank_(weights, 7, row_scales(), bases=wk.LowRankBases())
    untouched = [torch.equal(a, b) for a, b in zip(weights, before, strict=True)]
    assert untouched == [False, True, False, False, True, False, False]
    full = torch.tensor(untouched)
    assert torch.equal(result.energy_kept[full], result.energy_before[full])
    assert not result.skipped.any()


def test_vanishing_layers_are_left_alone(implementation):
    above, below = (random_matrix(6, 20, [scale] * 3 + [scale / 3] * 3).float() for scale in (1.02e-4, 0.98e-4))
    weights = [torch.zeros(6, 20), below, above, torch.full((6, 20), 1e-30)]
    before = [weight.clone() for weight in weights]
    result = wk.project_low_rank_(weights, 2, bases=wk.LowRankBases())
    assert result.skipped.tolist() == [True, True, False, True]
    assert [torch.equal(a, b) for a, b in zip(weights, before, strict=True)] == [True, True, False, True]
    assert torch.equal(result.energy_kept[[0, 1, 3]], result.energy_before[[0, 1, 3]])


def test_nothing_is_skipped_at_limit_zero(implementation):
    tiny = random_matrix(6, 20, torch.arange(6, 0, -1) * 1e-22)
    weights, before = [torch.zeros(6, 20), tiny.float()], tiny.float()
    if implementation == "torch":
        weights = weights[1:]
    result = wk.project_low_rank_(weights, 2, skip_below=0)
    assert not result.skipped.any()
    assert_close(weights[-1] * 1e22, expected(before * 1e22, 2))
    assert float(result.energy_before[-1]) == pytest.approx(91e-44, rel=1e-5, abs=0)
    assert not weights[0].isnan().any()


def test_squares_that_overflow_float32(implementation):
    weights = layers()[:2]
    weights[0] *= 1e25
    before = weights[0].clone()
    result = wk.project_low_rank_(weights, 3)
    assert not result.skipped.any()
    assert_close(weights[0].double() / 1e25, expected(before.double() / 1e25, 3))


@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    [
        (torch.float32, 3e17, 1e-5),
        (torch.float32, 5e17, 1e-5),
        (torch.float32, 1e18, 1e-5),
        (torch.float32, 1e30, 1e-5),
        (torch.float32, 2e37, 1e-5),
        (torch.bfloat16, 2e37, 1e-2),
        (torch.float16, 1.2e4, 2e-3),
        (torch.float64, 1e150, 1e-5),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(16, 40), (40, 16)], ids=["wide", "tall"])
def test_huge_weights_cold_and_warm(shape, dtype, size, tolerance):
    """A norm of 1.8e19 squared is beyond float32, and so are 640 elements of 2e37 added up."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64).mul(size).to(dtype), torch.randn(9, 30)]
    bases = wk.LowRankBases()
    for seed in range(3):
        weights[0] += (torch.randn(shape, generator=generator, dtype=torch.float64) * size / 100).to(dtype)
        drift(weights[1:], 0.01, seed)
        before = weights[0].double() / size
        result = wk.project_low_rank_(weights, 4, bases=bases)
        assert not result.skipped.any()
        assert_close(weights[0].double() / size, expected(before, 4), max(tolerance, 5e-4 if seed else 0))
        energy = before.square().sum() * size**2
        assert float(result.energy_before[0] / energy) == pytest.approx(1.0, rel=1e-5)
        assert 0 < float(result.energy_kept[0] / energy) < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(16, 40), (40, 16)], ids=["wide", "tall"])
def test_a_projection_beyond_the_dtype_leaves_the_layer_alone(shape, dtype, implementation):
    signs = torch.randn(shape, generator=torch.Generator().manual_seed(3)).sign().double()
    weights = [(signs * torch.finfo(dtype).max * 0.99).to(dtype), torch.randn(shape).to(dtype)]
    before = weights[0].clone()
    assert expected(before, 4).abs().max() > torch.finfo(dtype).max
    bases = wk.LowRankBases()
    for _ in range(2):
        result = wk.project_low_rank_(weights, 4, bases=bases)
        assert result.skipped.tolist() == [True, False]
        assert result.energy_kept.isnan().tolist() == [True, False]
        assert torch.equal(weights[0], before)
        assert_close(weights[1], expected(weights[1], 4), 0.02)


def test_a_first_projection_in_inference_mode_is_not_the_last():
    weights, bases, loaded = layers(), wk.LowRankBases(), wk.LowRankBases()
    with torch.inference_mode():
        wk.project_low_rank_(weights, RANKS, bases=bases)
        loaded.load_state_dict(bases.state_dict())
    wk.project_low_rank_(weights, RANKS, bases=bases)
    wk.project_low_rank_(weights, RANKS, bases=loaded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weight", "full rank weight", "scale"])
def test_poison_changes_nothing(where, value, implementation):
    weights, scales, bases = layers(), row_scales(), wk.LowRankBases()
    wk.project_low_rank_(layers(), RANKS, scales, bases=bases)
    kept = {key: tensor.clone() for key, tensor in bases.state_dict().items()}
    target = {"weight": weights[2], "full rank weight": weights[5], "scale": scales[3]}[where]
    target.view(-1)[5] = value
    before = [weight.clone() for weight in weights]
    result = wk.project_low_rank_(weights, RANKS, scales, bases=bases)
    assert result.skipped.all()
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(weights, before, strict=True))
    assert all(torch.equal(tensor, kept[key]) for key, tensor in bases.state_dict().items())


def drift(weights, share, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        weight.add_(noise * (share * weight.norm() / noise.norm()))


@pytest.mark.parametrize("share", [0.003, 0.03, 0.2])
def test_warm_start_is_as_accurate(share, ways):
    torch.manual_seed(5)
    shapes = [(64, 32, 3, 3), (96, 40), (64, 32, 3, 3), (48, 20, 3, 3)]
    ranks, bases = [25, 16, 25, 19], wk.LowRankBases()
    weights = [torch.randn(shape) for shape in shapes]
    weights[3] = weights[3].double()
    wk.project_low_rank_(weights, ranks, bases=bases)
    assert ways["iterate"] == 0
    for seed in range(3):
        drift(weights, share, seed)
        before = [weight.clone() for weight in weights]
        result = wk.project_low_rank_(weights, ranks, bases=bases, energy_transfer=False)
        for a, b, rank, kept in zip(before, weights, ranks, result.energy_kept.tolist(), strict=True):
            assert_best(a, b, rank, kept)
    assert ways["iterate"] == 12


def test_a_poor_basis_is_not_believed(ways):
    torch.manual_seed(6)
    bases, others = wk.LowRankBases(), wk.LowRankBases()
    first, second = torch.randn(40, 120), torch.randn(40, 120)
    wk.project_low_rank_([first], 16, bases=bases)
    before = second.clone()
    wk.project_low_rank_([second], 16, bases=bases)
    assert_close(second, expected(before, 16))
    # Invariant, but without the largest singular value.
    matrix = random_matrix(12, 30, torch.arange(12, 0, -1)).float()
    u = torch.linalg.svd(matrix)[0]
    others.load_state_dict({"0": u[:, 1:5].clone()})
    before = matrix.clone()
    wk.project_low_rank_([matrix], 4, bases=others)
    assert_close(matrix, expected(before, 4))
    # Above the rest by a gap, but not yet converged after two steps.
    matrix = random_matrix(30, 70, [1.0] * 6 + [0.3] * 24).float()
    others.load_state_dict({"0": torch.linalg.qr(torch.randn(30, 6))[0]})
    before = matrix.clone()
    result = wk.project_low_rank_([matrix], 6, bases=others, energy_transfer=False)
    assert_best(before, matrix, 6, float(result.energy_kept))
    assert ways["iterate"] == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(60, 150), (48, 50)])
def test_whatever_a_warm_start_accepts_is_as_accurate(shape, dtype, ways):
    """Every spectrum, from bases that are nearly right to quite wrong ones, in random and in the worst directions."""
    n, rank = min(shape), 20
    start, tried = wk.LowRankBases(), 0
    for i, spectrum in enumerate(spectra(n).values()):
        gap = torch.where(torch.arange(n) < rank, 1.0, 0.3)  # as after a projection
        matrix = random_matrix(*shape, spectrum.double() * gap, seed=i)
        u = torch.linalg.svd(matrix)[0]
        noise = random_matrix(n, rank, torch.ones(rank), seed=90 + i)
        for size in (1e-3, 0.03, 0.3, 1.0):
            for wrong in (noise, u[:, rank : 2 * rank], u[:, rank : rank + 1] * noise[:1]):
                basis = torch.linalg.qr(u[:, :rank] + size * wrong)[0].to(dtype)
                start.load_state_dict({"0": basis})
                before = matrix.to(dtype)
                after = before.clone()
                result = wk.project_low_rank_([after], rank, bases=start, energy_transfer=False)
                assert_best(before, after, rank, float(result.energy_kept))
                tried += 1
    assert 0.9 * tried > ways["iterate"] > 0.2 * tried


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("spectrum", spectra(4))
def test_bound_on_the_spectrum_outside_of_a_basis(spectrum, scale):
    n, rank = 50, 20
    grams, bases = [], []
    for i in range(40):
        u = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(i)).double())[0]
        grams.append((u * (scale * spectra(n)[spectrum].double()) ** 2) @ u.mT)
        bases.append(torch.linalg.qr(u[:, :rank] + 0.1 * i * u[:, rank : 2 * rank])[0])
    gram, q = torch.stack(grams).float(), torch.stack(bases).float()
    unit = bounds.trace(gram) / rank
    outside = torch.eye(n, dtype=torch.float64) - q.double() @ q.double().mT
    largest = torch.linalg.eigvalsh(outside @ gram.double() @ outside)[:, -1] / unit
    bound = subspace._largest_outside(gram, q, unit, 4)
    assert (bound >= largest - 1e-6).all()
    assert (bound < 3.5 * largest + 1e-5).all()


def test_vanishing_layers_are_left_alone_at_a_warm_start():
    bases, weight = wk.LowRankBases(), random_matrix(20, 50, torch.linspace(2, 1, 20)).float()
    wk.project_low_rank_([weight], 6, bases=bases)
    drift([weight], 0.05, 0)
    weight *= 1e-5
    before = weight.clone()
    assert wk.project_low_rank_([weight], 6, bases=bases).skipped.all()
    assert torch.equal(weight, before)


def test_gram_matrix_of_a_large_layer():
    x = torch.randn(2, 2 * stack.GRAM_BLOCK + 45, 50)
    gram = torch.full((2, x.shape[1], x.shape[1]), torch.nan)
    stack.gram_matrix(x, gram)
    torch.testing.assert_close(gram, x @ x.mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(10, 7, 3, 2), (30, 3, 2, 2)], ids=["wide", "tall"])
def test_layers_that_are_large_enough_to_be_alone(shape, memory_format, dtype, monkeypatch):
    monkeypatch.setattr(batch, "ALONE", 1)
    torch.manual_seed(8)
    values = [torch.randn(shape).to(dtype) for _ in range(3)]
    scale = torch.rand(shape[0])
    cases = [place(value, memory_format, 0) for value in values]
    bases = wk.LowRankBases()
    for _ in range(2):  # the second time from the first one's bases
        for case, value in zip(cases, values, strict=True):
            case.weight.copy_(value)
        wk.project_low_rank_([case.weight for case in cases], 4, [None, scale, None], bases=bases)
        for case, value, a in zip(cases, values, (None, scale, None), strict=True):
            assert_close(case.weight, expected(value, 4, a), max(1e-5, float(torch.finfo(dtype).eps)))
            assert case.guards_intact()


@pytest.fixture
def threads():
    former = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(former)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("parts", [4, 1000])
@pytest.mark.parametrize("share", [None, 0.1, 1.0], ids=["cold", "warm", "both"])
def test_threads_find_what_one_finds(share, parts, mode, threads, monkeypatch):
    """With parts of several layers and of one, for a warm start that serves none, all or some of the layers."""
    threads(3)
    monkeypatch.setattr(batch, "PARTS", parts)
    monkeypatch.setattr(parallel, "WORTH_THREADS", 0)
    monkeypatch.setattr(batch, "ALONE", 600)
    torch.manual_seed(9)
    shapes = [(40, 90), (12, 30), (12, 30), (6, 2, 3, 3), (30, 12), (12, 50), (4, 3), (70, 20), (20, 31)] * 2
    ranks, bases = [min(shape[0], 12) // 3 for shape in shapes], wk.LowRankBases()
    with mode():
        weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        if share is not None:
            wk.project_low_rank_(weights, ranks, bases=bases)
            with torch.no_grad():
                drift(weights[::2], 0.05, 0)
                drift(weights[1::2], share, 1)
        before = [weight.detach().clone() for weight in weights]
        wk.project_low_rank_(weights, ranks, bases=bases)
    for a, b, rank in zip(before, weights, ranks, strict=True):
        assert_close(b.detach(), expected(a, rank), 1e-3 if share else 1e-5)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("work", "alone"),
    [([1] * 8, 0), ([1] * 7 + [10], 1), ([9, 1, 1, 1, 1, 3, 1, 1], 1), ([40, 1, 30, 100, 1, 1, 1], 3)],
)
def test_items_in_threads(work, alone, threads, monkeypatch):
    """Each once and in order; those of more than a thread's share of what is left are given all threads."""
    threads(3)
    monkeypatch.setattr(parallel, "WORTH_THREADS", 0)
    given = parallel.run(lambda i: (i, torch.get_num_threads()), range(len(work)), work, torch.device("cpu"))
    largest = sorted(work)[-alone:] if alone else []
    assert given == [(i, 3 if work[i] in largest else 1) for i in range(len(work))]
    assert torch.get_num_threads() == 3


def test_work_that_is_not_worth_threads(threads):
    threads(3)
    assert parallel.run(lambda _: torch.get_num_threads(), range(4), [1] * 4, torch.device("cpu")) == [3] * 4


@pytest.mark.parametrize("failing", [0, 5])
def test_number_of_threads_survives_an_error(failing, threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(parallel, "WORTH_THREADS", 0)

    def fail(i):
        if i == failing:
            raise ValueError(f"item {i}")

    with pytest.raises(ValueError, match=f"item {failing}"):
        parallel.run(fail, range(8), [1] * 8, torch.device("cpu"))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("had", [0, 1])
def test_threads_that_cannot_be_had(had, threads, monkeypatch):
    """A limit of the system, or Python 3.12 at its end: the threads there are project all layers."""
    threads(3)
    monkeypatch.setattr(parallel, "WORTH_THREADS", 0)
    start, started = threading.Thread.start, []

    def start_few(thread):
        if len(started) == had:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_few)
    weights = [torch.randn(24 - i, 40) for i in range(10)]
    before = [weight.clone() for weight in weights]
    wk.project_low_rank_(weights, 5)
    for a, b in zip(before, weights, strict=True):
        assert_close(b, expected(a, 5), 1e-5)
    assert len(started) == had
    assert torch.get_num_threads() == 3


AT_EXIT = """
import atexit, torch, we_kernels as wk
from we_kernels.low_rank import parallel

parallel.WORTH_THREADS = 0
torch.set_num_threads(2)
weights = [torch.randn(20 - i, 30) for i in range(4)]
atexit.register(lambda: print(wk.project_low_rank_(weights, 5).skipped.tolist()))
"""


def test_projection_at_exit():
    done = subprocess.run([sys.executable, "-W", "error", "-c", AT_EXIT], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[False, False, False, False]", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_during_a_projection(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(parallel, "WORTH_THREADS", 0)
    running, finish = threading.Event(), threading.Event()

    def wait(_):
        running.set()
        assert finish.wait(30)

    other = threading.Thread(target=parallel.run, args=(wait, range(2), [1, 1], torch.device("cpu")))
    other.start()
    assert running.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for a thread it does not have
        os._exit(0 if parallel.run(lambda i: i, range(4), [1] * 4, torch.device("cpu")) == [0, 1, 2, 3] else 1)
    finish.set()
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_equal_shapes_of_different_dtypes():
    weights = [layers()[0], layers()[2].double(), layers()[6].bfloat16()]
    before = [weight.clone() for weight in weights]
    wk.project_low_rank_(weights, 5)
    for weight, values, tolerance in zip(weights, before, (1e-6, 1e-12, 1e-2), strict=True):
        assert_close(weight, expected(values, 5), tolerance)


def test_bases_are_saved_and_renewed(ways):
    torch.manual_seed(7)
    weights, bases = [torch.randn(20, 50), torch.randn(40, 30)], wk.LowRankBases()
    wk.project_low_rank_(weights, [6, 8], bases=bases)
    state = bases.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {"0": (20, 6), "1": (30, 8)}
    for tensor in state.values():
        torch.testing.assert_close(tensor.mT @ tensor, torch.eye(tensor.shape[1]), rtol=0, atol=1e-5)
    loaded = wk.LowRankBases()
    loaded.load_state_dict(state)
    drift(weights, 0.05, 0)
    wk.project_low_rank_(weights, [6, 7], bases=loaded)
    assert ways["iterate"] == 1
    assert loaded.tensors[1].shape == (30, 7)
    assert state["1"].shape == (30, 8)


PRECISIONS = [
    "torch.set_float32_matmul_precision('medium')",
    *(["torch.backends.mkldnn.matmul.fp32_precision = 'bf16'"] if hasattr(torch.backends.mkldnn, "matmul") else []),
]


def test_users_precision_settings_do_not_reach_it():
    """The older and the newer way to set it do not mix: each in a process of its own."""
    program = f"""
import os, torch, we_kernels as wk

def check():
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    chosen, seen, solve = getattr(matmul, "fp32_precision", None), [], torch.linalg.eigh

    def spy(*arguments):
        seen.append(torch.get_float32_matmul_precision() if matmul is None else matmul.fp32_precision)
        return solve(*arguments)

    torch.linalg.eigh = spy
    before = torch.randn(200, 300)
    after = before.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wk.project_low_rank_([after], 60, energy_transfer=False)
    assert getattr(matmul, "fp32_precision", None) == chosen
    assert seen in (["ieee"], ["highest"]), seen
    s = torch.linalg.svdvals(before.double())
    distance = float((after - before).double().norm())
    assert distance <= float(s[60:].norm()) * (1 + 1e-6), distance / float(s[60:].norm())

for setting in {PRECISIONS!r}:
    child = os.fork()
    if not child:
        exec(setting)
        check()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setting
"""
    settings = environment(OMP_NUM_THREADS="1")
    forking = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", forking, "-c", program]
    subprocess.run(command, check=True, env=settings)


def test_tied_weights_are_projected_once(implementation):
    single, tied = layers()[0], layers()[0]
    once = wk.project_low_rank_([single], 4)
    twice = wk.project_low_rank_([tied, layers()[1], tied[:]], [4, 3, 4])
    assert torch.equal(single, tied)
    assert twice.energy_kept.tolist()[::2] == once.energy_kept.tolist() * 2
    with pytest.raises(ValueError, match=r"ranks\[1\] differs from ranks\[0\].*same tensor"):
        wk.project_low_rank_([tied, tied], [4, 3])


def test_empty(implementation):
    assert [field.shape for field in wk.project_low_rank_([], 3)] == [(0,)] * 3
    weights = [torch.empty(0, 3, 3, 3), torch.randn(5, 8)]
    assert wk.project_low_rank_(weights, 2).energy_before[0] == 0


def test_parameters_and_their_version_counters(implementation):
    weights = [torch.nn.Parameter(weight) for weight in layers()[:2]]
    loss = sum((weight**2).sum() for weight in weights)
    versions = [weight._version for weight in weights]
    wk.project_low_rank_(weights, 3)
    assert all(weight._version > version for weight, version in zip(weights, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def arguments():
    bases = [torch.zeros(min(12, 45), 5), torch.zeros(7, 3)]
    return (layers()[:2], [0, 0], [0, 0], [5, 3], [torch.rand(12), None], True, 1e-4, bases)


def test_opcheck(implementation):
    op = torch.ops.we_kernels.project_low_rank_.default
    opcheck(op, arguments())
    opcheck(op, (*arguments()[:-1], []))


def test_fakes_have_the_real_shapes():
    real = torch.ops.we_kernels.project_low_rank_(*arguments())
    with torch._subclasses.FakeTensorMode() as mode:
        weights, dims, groups, ranks, scales, *rest, bases = arguments()
        fake = torch.ops.we_kernels.project_low_rank_(
            [mode.from_tensor(weight) for weight in weights],
            dims,
            groups,
            ranks,
            [mode.from_tensor(scales[0]), None],
            *rest,
            [mode.from_tensor(basis) for basis in bases],
        )
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def test_compiles_into_one_graph():
    scales = row_scales()

    def step(weights):
        return wk.project_low_rank_(weights, RANKS, scales).energy_kept + 1

    eager, compiled = layers(), layers()
    right = step(eager)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    assert torch.equal(found, right)
    for a, b, before in zip(eager, compiled, layers(), strict=True):
        assert torch.equal(a, b)
        assert a.shape == (8, 6, 3) or not torch.equal(a, before)


W = torch.randn(6, 4, 3, 3)
BAD = {
    "one tensor": (lambda: wk.project_low_rank_(W, 2), TypeError, "must be a list of tensors"),
    "vector": (
        lambda: wk.project_low_rank_([W, torch.ones(3)], 2),
        ValueError,
        r"weights\[1\].*2 to 5 dimensions.*got 1",
    ),
    "integer": (lambda: wk.project_low_rank_([W, W.int()], 2), TypeError, r"weights\[1\] must be float32"),
    "meta": (lambda: wk.project_low_rank_([W.to("meta")], 2), TypeError, "meta tensor"),
    "expanded": (lambda: wk.project_low_rank_([W, W[:1].expand(6, 4, 3, 3)], 2), ValueError, "overlaps itself"),
    "overlapping": (lambda: wk.project_low_rank_([W[:4], W[2:]], 2), ValueError, "overlaps"),
    "filter_dim": (lambda: wk.project_low_rank_([W], 2, filter_dim=4), ValueError, r"filter_dim of weights\[0\]"),
    "rank zero": (lambda: wk.project_low_rank_([W], 0), ValueError, "ranks must be at least 1, got 0"),
    "rank type": (lambda: wk.project_low_rank_([W], [2.0]), TypeError, r"ranks\[0\] must be an integer, got float"),
    "rank bool": (lambda: wk.project_low_rank_([W], True), TypeError, "ranks must be an integer, got bool"),
    "rank count": (lambda: wk.project_low_rank_([W], [2, 2]), ValueError, r"one per tensor \(1\), got 2"),
    "scale, no list": (lambda: wk.project_low_rank_([W], 2, torch.ones(1, 6)), TypeError, "row_scale must be a list"),
    "scale count": (lambda: wk.project_low_rank_([W], 2, []), ValueError, r"row_scale must have one entry.*\(1\)"),
    "scale type": (lambda: wk.project_low_rank_([W], 2, [2.0]), TypeError, r"row_scale\[0\] must be a tensor or None"),
    "scale dtype": (
        lambda: wk.project_low_rank_([W], 2, [torch.ones(6).half()]),
        TypeError,
        r"row_scale\[0\] must be float32 or float64, got torch.float16",
    ),
    "scale shape": (
        lambda: wk.project_low_rank_([W], 2, [torch.ones(4)]),
        ValueError,
        r"row_scale\[0\] must have shape \(6,\), one per filter, got \(4,\)",
    ),
    "scale device": (
        lambda: wk.project_low_rank_([W], 2, [torch.ones(6, device="meta")]),
        ValueError,
        r"row_scale\[0\] must be on cpu",
    ),
    "tied, other scale": (
        lambda: wk.project_low_rank_([W, W], 2, [torch.ones(6), None]),
        ValueError,
        r"row_scale\[1\] differs",
    ),
    "bases": (lambda: wk.project_low_rank_([W], 2, bases={}), TypeError, "bases must be a LowRankBases or None"),
    "limit negative": (lambda: wk.project_low_rank_([W], 2, skip_below=-1), ValueError, "skip_below must be finite"),
    "limit NaN": (lambda: wk.project_low_rank_([W], 2, skip_below=float("nan")), ValueError, "skip_below"),
    "limit type": (lambda: wk.project_low_rank_([W], 2, skip_below="1"), TypeError, "skip_below must be a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    before = W.clone()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(W, before)
