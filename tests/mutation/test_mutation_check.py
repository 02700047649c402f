"""The mutation check on one fault of each kind; ``make mutation`` tries them all."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_sample_of_faults_is_noticed():
    command = [sys.executable, str(Path(__file__).with_name("check.py")), "--sample"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SURVIVED" not in result.stdout
    assert result.stdout.count("killed") >= 5
