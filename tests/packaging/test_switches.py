"""The switches of the build: what they refuse, and what they make CMake do."""

import shutil
import sys

import pytest

from tests.packaging import builds

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"WE_KERNELS_NATIVE": "maybe"}, "error: WE_KERNELS_NATIVE must be auto, on or off, got 'maybe'"),
        ({"WE_KERNELS_CUDA": "1"}, "error: WE_KERNELS_CUDA must be auto, on or off, got '1'"),
        ({"WE_KERNELS_NATIVE": "off", "WE_KERNELS_CUDA": "on"}, "error: WE_KERNELS_CUDA=on needs the extension"),
        ({"MAX_JOBS": "0"}, "error: MAX_JOBS must be a positive number, got '0'"),
    ],
)
def test_refused(source, settings, message):
    done = builds.hook("get_requires_for_build_wheel", source, **settings)
    assert done.returncode
    assert message in done.stdout


def configure(source, tmp_path, *options, **settings):
    command = ("cmake", "-S", source, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={sys.executable}", *options)
    return builds.run(*command, cwd=tmp_path, **settings)


def test_cmake_refuses_an_unknown_value(source, tmp_path):
    done = configure(source, tmp_path, "-DWE_KERNELS_CUDA=yes")
    assert done.returncode
    assert "WE_KERNELS_CUDA must be auto, on or off, got 'yes'" in done.stdout


def test_cuda_on_needs_nvcc(source, tmp_path):
    path = builds.path_without_nvcc()
    said = "WE_KERNELS_CUDA=on, but nvcc was not found; put it on the PATH, or set"
    done = configure(source, tmp_path, "-DWE_KERNELS_CUDA=on", PATH=path)
    assert done.returncode
    assert said in " ".join(done.stdout.split())

    done = builds.hook("build_wheel", source, tmp_path, WE_KERNELS_CUDA="on", PATH=path)
    assert done.returncode
    assert "error: the extension we_kernels._native cannot be built: CMake Error" in done.stdout
    assert said in " ".join(done.stdout.split())


def test_cuda_auto_leaves_out_what_nvcc_cannot_build(source, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    done = configure(source, tmp_path, "-DWE_KERNELS_CUDA=auto", CUDACXX=str(nvcc))
    assert done.returncode == 0, done.stdout
    assert f"CUDA part left out: {nvcc} cannot compile a test program" in done.stdout

    done = configure(source, tmp_path, "-DWE_KERNELS_CUDA=on", CUDACXX=str(nvcc))
    assert done.returncode
    assert f"WE_KERNELS_CUDA=on, but {nvcc} cannot compile" in " ".join(done.stdout.split())


def test_cuda_is_not_looked_for_unless_asked_for(source, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    nvcc.chmod(0o755)
    done = configure(source, tmp_path, CUDACXX=str(nvcc))
    assert done.returncode == 0, done.stdout
    assert "CUDA part left out: WE_KERNELS_CUDA=off, the default" in done.stdout
    assert not (tmp_path / "called").exists()


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize(
    ("settings", "architectures"),
    [
        ({"CUDAARCHS": "90;100-virtual", "TORCH_CUDA_ARCH_LIST": "8.0"}, "90;100-virtual"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;9.0a 10.0+PTX"}, "80-real;90a-real;100-real;100-virtual"),
    ],
)
def test_architectures(source, tmp_path, settings, architectures):
    done = configure(source, tmp_path, "-DWE_KERNELS_CUDA=on", **settings)
    assert done.returncode == 0, done.stdout
    assert f", for {architectures}\n" in done.stdout

    # A build folder that is used again follows the environment.
    done = configure(source, tmp_path, CUDAARCHS="80")
    assert ", for 80\n" in done.stdout


@needs_nvcc
def test_nvcc_is_found_through_cuda_home(source, tmp_path):
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    (home / "bin/nvcc").symlink_to(shutil.which("nvcc"))
    options = {"PATH": builds.path_without_nvcc(), "CUDA_HOME": str(home)}
    done = configure(source, tmp_path, "-DWE_KERNELS_CUDA=on", **options)
    assert done.returncode == 0, done.stdout
    assert "-- CUDA part: nvcc" in done.stdout
