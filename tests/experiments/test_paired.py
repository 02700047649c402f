import pytest
from scipy import stats

from experiments.paired import Comparisons, half_width, holm, paired_p_value, with_interval

VALUES = [1.0, 2.5, 2.0, 4.0, 0.5, 3.0]


def test_half_width():
    low, high = stats.t.interval(0.95, 5, loc=sum(VALUES) / 6, scale=stats.sem(VALUES))
    assert half_width(VALUES) == pytest.approx((high - low) / 2)


def test_paired_p_value():
    other = [0.0, 2.0, 2.5, 1.0, 0.0, 2.0]
    differences = [a - b for a, b in zip(VALUES, other, strict=True)]
    assert paired_p_value(differences) == pytest.approx(stats.ttest_rel(VALUES, other).pvalue)
    assert paired_p_value([0.0, 0.0]) == 1
    assert paired_p_value([1.0, 1.0]) == 0


def test_holm():
    """0.01 * 4, 0.02 * 3, 0.03 * 2 raised to the one before, 0.5."""
    adjusted = holm({"a": 0.02, "b": 0.5, "c": 0.01, "d": 0.03})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.5, "c": 0.04, "d": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_comparisons():
    compared = Comparisons({"a": VALUES, "b": [-1.0, 1.0, 0.5], "c": [1.0]})
    assert len(compared) == 2
    p = {"a": stats.ttest_1samp(VALUES, 0).pvalue, "b": stats.ttest_1samp([-1.0, 1.0, 0.5], 0).pvalue}
    assert compared.cell("a", 1) == f"+{sum(VALUES) / 6:.1f} +- {half_width(VALUES):.1f} (p {2 * p['a']:.3f})"
    assert compared.cell("b", 2).endswith(f"(p {p['b']:.3f})")
    assert compared.cell("c", 1) == compared.cell("d", 1) == "-"
    assert Comparisons({"a": [2.0, 2.0]}).cell("a", 1) == "+2.0 +- 0.0 (p < 0.001)"
    assert with_interval([2.0], 1) == "2.0"
