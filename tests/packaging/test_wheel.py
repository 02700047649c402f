"""What gets into the sdist and the wheels, and that it works from a fresh folder."""

import os
import shutil
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from tests.packaging import builds

USE = """
import torch, we_kernels as wk
weight = torch.arange(24.0).view(4, 3, 1, 2)
bank = wk.FilterBank([weight])
donor = wk.evolve_(bank, rate=0.6, local_ratio=0.5).donor
print(wk.backend_of("evolve_", torch.device("cpu")), donor.tolist())
"""
REPORT = """
import runpy
runpy.run_module("we_kernels")
"""


def python_files(root):
    return {str(path.relative_to(root)) for path in root.rglob("*.py")}


def names_in(wheel):
    """Of a wheel that holds the packages, as it must."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"we_kernels/{name}" for name in python_files(builds.ROOT / "we_kernels")}
    expected |= {f"weight_evolution/{name}" for name in python_files(builds.ROOT / "python/weight_evolution")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert {"we_kernels/py.typed", "weight_evolution/py.typed"} <= names
    return names


def test_sdist_holds_the_sources(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = {".py", ".pyi", ".typed", ".cpp", ".h", ".cu", ".cuh", ".cmake"}
    for folder in ("csrc", "we_kernels", "python/weight_evolution"):
        expected = {
            str(path.relative_to(builds.ROOT)) for path in (builds.ROOT / folder).rglob("*") if path.suffix in kept
        }
        assert expected
        assert expected <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_isolated_build(sdist, tmp_path):
    """pip's own build environment has no torch; warnings are errors, nvcc's too."""
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist)
    switches = {"WE_KERNELS_NATIVE": "on", "WE_KERNELS_CUDA": "auto", "WE_KERNELS_WERROR": "ON", "CUDAARCHS": "90"}
    done = builds.run(*pip, cwd=tmp_path, **switches)
    assert done.returncode == 0, done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert len([name for name in names_in(wheel) if name.startswith("we_kernels/_native.")]) == 1

    site = builds.unpack(wheel, tmp_path / "site")
    said = builds.python(USE + REPORT, site, tmp_path)
    assert said.startswith("native")
    assert ("CUDA for 90" in said) == (shutil.which("nvcc") is not None)
    assert ("built without CUDA: nvcc was not found" in said) == (shutil.which("nvcc") is None)


def test_a_plain_build_says_why_there_is_no_cuda(source, tmp_path):
    """The compiler is spared: the module is that of the tests' own package."""
    built = [path for path in (builds.ROOT / "we_kernels").glob("_native.*") if path.suffix in (".so", ".pyd")]
    if len(built) != 1:
        pytest.skip("the extension is not built")
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    real = shutil.which("cmake", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    cmake.write_text(f'#!/bin/sh\ncase "$1" in --build) cp {built[0]} "$2" ;; *) exec {real} "$@" ;; esac\n')
    cmake.chmod(0o755)
    path = f"{cmake.parent}:{os.environ['PATH']}"
    wheel = builds.made(builds.hook("build_wheel", source, tmp_path, PATH=path), tmp_path)
    site = builds.unpack(wheel, tmp_path / "site")
    reason = "built without CUDA: WE_KERNELS_CUDA=off, the default"
    assert reason in (site / "we_kernels" / "_native_reason.txt").read_text(encoding="utf-8")
    said = builds.python(REPORT, site, tmp_path)
    assert "CUDA for" in said or f"the native extension was {reason}" in said


def test_without_the_extension(source, tmp_path):
    wheel = builds.made(builds.hook("build_wheel", source, tmp_path, WE_KERNELS_NATIVE="off"), tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(wheel) if name.endswith(".so")]

    site = builds.unpack(wheel, tmp_path / "site")
    said = builds.python(USE + REPORT, site, tmp_path)
    assert said.startswith("torch [2, 3, -1, -1]\n")
    assert "WE_KERNELS_NATIVE=off" in said


def test_a_failing_build_installs_pure_and_says_why(source, tmp_path):
    compiler = {"CXX": "/bin/false", "WE_KERNELS_CUDA": "off"}
    wheel = builds.made(builds.hook("build_wheel", source, tmp_path, **compiler), tmp_path)
    site = builds.unpack(wheel, tmp_path / "site")
    said = builds.python(USE + REPORT, site, tmp_path)
    assert said.startswith("torch")
    assert "CMake Error" in said
    assert "/bin/false" in said

    refused = builds.hook("build_wheel", source, tmp_path, WE_KERNELS_NATIVE="on", **compiler)
    assert refused.returncode
    assert "error: the extension we_kernels._native cannot be built: CMake Error" in refused.stdout


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_compiler_that_speaks_another_language(source, tmp_path):
    """In a locale that cannot write its messages, nor read the note of why there is no extension."""
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_bytes(b"#!/bin/sh\necho 'CMake Error: Datei \xc2\xbbm\xc3\xb6gen\xc2\xab \xff fehlt'\nexit 1\n")
    cmake.chmod(0o755)
    path = f"{cmake.parent}:{os.environ['PATH']}"
    wheel = builds.made(builds.hook("build_wheel", source, tmp_path, PATH=path, **ASCII), tmp_path)
    site = builds.unpack(wheel, tmp_path / "site")
    assert "Datei »mögen« \\xff fehlt" in (site / "we_kernels" / "_native_reason.txt").read_text(encoding="utf-8")
    said = builds.python(USE + REPORT, site, tmp_path, **ASCII)
    assert said.startswith("torch")
    assert "CMake Error: Datei" in said


def test_sources_that_hide_the_installed_package(source, tmp_path):
    """They have no extension; the installed package has one (here: any file)."""
    wheel = builds.made(builds.hook("build_wheel", source, tmp_path, WE_KERNELS_NATIVE="off"), tmp_path)
    site = builds.unpack(wheel, tmp_path / "site")
    (site / "we_kernels" / "_native.abi3.so").touch()
    shutil.rmtree(source / "build", ignore_errors=True)
    code = f"import sys; sys.path.append({str(site)!r})\n" + USE
    done = builds.run(sys.executable, "-c", builds.NO_EDITABLE + code, cwd=source, PYTHONPATH=str(source))
    assert "RuntimeWarning: we_kernels is loaded from" in done.stdout
    assert "torch [2, 3, -1, -1]" in done.stdout
    code = "import runpy; runpy.run_module('we_kernels')"
    path = f"{source}:{site}"
    said = builds.run(sys.executable, "-c", builds.NO_EDITABLE + code, cwd=source, PYTHONPATH=path).stdout
    assert f"loaded from: {source / 'we_kernels'}" in said
    assert f"the package installed in {site / 'we_kernels'} has it" in said


@pytest.mark.slow
def test_editable_install_builds_in_place_and_again_only_what_changed(source, tmp_path):
    first = builds.hook("build_editable", source, tmp_path, WE_KERNELS_NATIVE="on", WE_KERNELS_CUDA="off")
    builds.made(first, tmp_path)
    (module,) = (source / "we_kernels").glob("_native.*")
    module.unlink()
    again = builds.hook("build_editable", source, tmp_path, WE_KERNELS_NATIVE="on", WE_KERNELS_CUDA="off")
    builds.made(again, tmp_path)
    assert "no work to do" in again.stdout
    assert module.exists()
    assert builds.python("from we_kernels import _native; print(_native.__file__)", source, tmp_path) == str(module)

    builds.made(builds.hook("build_editable", source, tmp_path, WE_KERNELS_NATIVE="off"), tmp_path)
    assert not module.exists(), "the extension of an earlier build would still be used"
