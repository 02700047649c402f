"""The mutation check on one fault of each part of the code; ``make mutation`` tries them all."""

import pytest

from tests.mutation.mutants import MUTANTS
from tests.processes import ROOT, run_module


def test_every_fault_fits_its_source():
    for mutant in MUTANTS:
        assert (ROOT / mutant.path).read_text().count(mutant.old) == 1, (mutant.path, mutant.old)
        named = [word.split("::")[0] for word in mutant.tests.split() if word.startswith("tests/")]
        assert named
        assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_a_sample_of_faults_is_noticed():
    result = run_module("tests.mutation.check", "--sample")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SURVIVED" not in result.stdout
    assert result.stdout.count("killed") == 5
