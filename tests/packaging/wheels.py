"""Builds the sdist and, from it, a wheel for each Python; tries each wheel in a fresh environment (``make wheels``).

    python -m tests.packaging.wheels [--output dist] [PYTHON ...]

Without names, every python3.x on the PATH that the package supports. Needs auditwheel and patchelf, which say on which
Linux a wheel runs. PyTorch is not downloaded: where the environment of ``make`` has none for a Python, its wheel's
extension is called without.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.packaging import builds

OLDEST = (3, 10)
WITH_TORCH = """
import runpy, torch, we_kernels as wk
runpy.run_module("we_kernels")
bank = wk.FilterBank([torch.arange(24.0).view(4, 3, 1, 2)])
with wk.use_backend("native"):
    assert wk.evolve_(bank, rate=0.6, local_ratio=0.5).donor.tolist() == [2, 3, -1, -1]
"""
WITHOUT_TORCH = """
import ctypes, importlib.util, pathlib, sys, sysconfig
(path,) = pathlib.Path(sysconfig.get_path("platlib"), "we_kernels").glob("_native.*.so")
spec = importlib.util.spec_from_file_location("we_kernels._native", path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
activity, dormant = (ctypes.c_float * 4)(0, 1, 2, 3), (ctypes.c_uint8 * 4)()
native.dormant_units(ctypes.addressof(activity), 4, [4], 0, 0, 0.5, ctypes.addressof(dormant))
assert list(dormant) == [1, 0, 0, 0], list(dormant)
print(native.compiler(), native.simd(), "without PyTorch", sep=", ")
"""


def pythons_on(path):
    """Version -> interpreter, the first of each that runs and that the package supports."""
    found = {}
    for folder in path.split(os.pathsep):
        for interpreter in sorted(Path(folder).glob("python3.*")):
            if re.fullmatch(r"python3\.\d+", interpreter.name) and (version := version_of(interpreter)):
                found.setdefault(version, str(interpreter))
    return {version: found[version] for version in sorted(found) if version >= OLDEST}


def version_of(interpreter):
    """(3, 11), or None where it does not run, as pyenv's stand-ins for versions that are switched off."""
    code = "import sys, venv; print(*sys.version_info[:2])"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None


def build(interpreter, sdist, output):
    """The wheel, with the tag of the oldest Linux that it runs on."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (interpreter, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist)
        finish(pip, WE_KERNELS_NATIVE="on")
        (wheel,) = Path(folder).glob("*.whl")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        finish((sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", f"{folder}/tagged", wheel), PATH=path)
        (tagged,) = Path(folder, "tagged").glob("*manylinux*.whl")
        target = output / tagged.name
        target.write_bytes(tagged.read_bytes())
    return target


def attempt(interpreter, wheel):
    """What the installed wheel says, in an environment that has nothing else, but PyTorch where that is at hand."""
    with tempfile.TemporaryDirectory() as folder:
        finish((interpreter, "-m", "venv", folder))
        python = f"{folder}/bin/python"
        finish((python, "-m", "pip", "install", "--quiet", "--no-deps", wheel))
        version = finish((f"{folder}/bin/weight-evolution", "--version"), cwd=folder)
        site = builds.ROOT / ".venv" / Path(*Path(site_of(python)).parts[-3:])
        has_torch = (site / "torch").is_dir()
        if has_torch:
            Path(site_of(python), "torch_of_make.pth").write_text(f"{site}\n", encoding="utf-8")
        said = finish((python, "-c", WITH_TORCH if has_torch else WITHOUT_TORCH), cwd=folder)
        return f"weight-evolution {version}{said}"


def site_of(python):
    """The folder of its packages."""
    return finish((python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))")).strip()


def finish(command, cwd=builds.ROOT, **settings):
    """What the command prints; SystemExit with that where it fails."""
    done = builds.run(*command, cwd=cwd, **settings)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def main(arguments=None):
    """One paragraph per wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=builds.ROOT / "dist")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters (default: those on the PATH)")
    options = parser.parse_args(arguments)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    sdist = builds.made(builds.hook("build_sdist", builds.ROOT, output), output)
    print(sdist.name, flush=True)
    for interpreter in options.pythons or pythons_on(os.environ["PATH"]).values():
        wheel = build(interpreter, sdist, output)
        print(f"\n{wheel.name}\n{attempt(interpreter, wheel)}", end="", flush=True)


if __name__ == "__main__":
    main()
