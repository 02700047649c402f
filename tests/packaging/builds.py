"""Runs builds of this package in copies of its sources, so that the working tree's own build stays as it is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("WE_KERNELS_NATIVE", "WE_KERNELS_CUDA", "WE_KERNELS_WERROR", "WE_KERNELS_BACKEND", "MAX_JOBS")
CUDA = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUDAARCHS", "TORCH_CUDA_ARCH_LIST")


def environment(**settings):
    """This process's environment with these build settings only."""
    kept = {name: value for name, value in os.environ.items() if name not in (*SWITCHES, *CUDA, "PYTHONPATH")}
    return kept | settings


def path_without_nvcc():
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
    return os.pathsep.join(folders)


def run(*command, cwd, **settings):
    """The finished process; its stdout holds stderr too."""
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def hook(name, source, *arguments, **settings):
    """Calls a build hook as pip does without isolation; the file it made is the last line of stdout."""
    call = f"from setuptools import build_meta; print(build_meta.{name}(*{[str(a) for a in arguments]!r}))"
    return run(sys.executable, "-c", call, cwd=source, **settings)


def made(done, folder):
    """The file that a successful build left in ``folder``."""
    assert done.returncode == 0, done.stdout
    return folder / done.stdout.splitlines()[-1]


def copy_sources(target):
    """The working tree as a fresh clone would be."""
    ignored = (".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "_native*.so", "_native_reason.txt")
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*ignored, ".*_cache", ".hypothesis", "demo-output"))
    return target


def unpack(wheel, target):
    zipfile.ZipFile(wheel).extractall(target)
    return target


# An editable installation finds we_kernels._native in its own tree for any we_kernels that has none.
NO_EDITABLE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in f.__module__]\n"


def python(code, site, cwd, **settings):
    """What a fresh interpreter prints that finds the packages in the folder ``site``."""
    done = run(sys.executable, "-W", "error", "-c", NO_EDITABLE + code, cwd=cwd, PYTHONPATH=str(site), **settings)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()
