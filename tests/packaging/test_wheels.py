"""``make wheels``: which Pythons it finds, and a wheel that it makes."""

import re
import sys

import pytest

from tests.packaging import wheels


def interpreter(folder, name, says, status=0):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {says}\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_finds_one_python_of_each_supported_version(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    kept = interpreter(first, "python3.11", "3 11")
    interpreter(second, "python3.11", "3 11")
    newer = interpreter(second, "python3.12", "3 12")
    interpreter(first, "python3.9", "3 9")
    interpreter(first, "python3.13", "pyenv: not switched on", status=127)
    interpreter(first, "python3.12-config", "3 12")
    interpreter(first, "python3", "3 11")
    assert wheels.pythons_on(f"{tmp_path / 'nowhere'}:{first}:{second}") == {(3, 11): kept, (3, 12): newer}


def test_a_command_that_fails_says_what_it_printed(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*no-pip -m pip\nout of order"):
        wheels.finish((interpreter(tmp_path, "no-pip", "out of order", status=1), "-m", "pip"))


@pytest.mark.slow
def test_a_wheel_for_this_python(tmp_path, capsys):
    """Built from the sdist in pip's own environment, which has no torch, and tried in a fresh one."""
    pytest.importorskip("auditwheel", reason="needs auditwheel, which `make wheels` installs")
    wheels.main(["--output", str(tmp_path), sys.executable])
    (wheel,) = tmp_path.glob("*.whl")
    assert re.search(r"-cp3\d+-cp3\d+-manylinux_2_\d+_x86_64.*\.whl$", wheel.name)
    said = capsys.readouterr().out
    assert wheel.name in said
    assert "without PyTorch" in said or "built without CUDA" in said
