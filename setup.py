"""Builds the extension we_kernels._native with CMake; the metadata is in pyproject.toml.

Environment: WE_KERNELS_NATIVE and WE_KERNELS_CUDA (auto, on or off; without them auto and off), WE_KERNELS_WERROR,
MAX_JOBS, and what CMake reads (CXX, CXXFLAGS, CUDACXX, CUDAARCHS, ...). With auto, what cannot be built is left out.
we_kernels/_native_reason.txt says why something was left out.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "we_kernels"
MODULE = "_native" + sysconfig.get_config_var("EXT_SUFFIX")


def switch(name, default):
    value = os.environ.get(name) or default
    if value not in ("auto", "on", "off"):
        sys.exit(f"error: {name} must be auto, on or off, got {value!r}")
    return value


NATIVE = switch("WE_KERNELS_NATIVE", "auto")
CUDA = switch("WE_KERNELS_CUDA", "off")
JOBS = os.environ.get("MAX_JOBS", "")
if NATIVE == "off" and CUDA == "on":
    sys.exit("error: WE_KERNELS_CUDA=on needs the extension, which WE_KERNELS_NATIVE=off leaves out")
if JOBS and not re.fullmatch("[1-9][0-9]*", JOBS):
    sys.exit(f"error: MAX_JOBS must be a positive number, got {JOBS!r}")


class BuildError(Exception):
    pass


def tool(name):
    """Its path; the environment pip builds in, or the one of this interpreter, has it without being active."""
    path = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    if found := shutil.which(name, path=path):
        return found
    raise BuildError(f"{name} was not found")


def run(*command):
    """The command's output, which is printed too; BuildError with the first error in it when the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # Compilers quote in UTF-8 and name paths in any bytes; the locale may know neither.
    output = done.stdout.decode("utf-8", "backslashreplace")
    known = sys.stdout.encoding or "ascii"
    print(output.encode(known, "backslashreplace").decode(known), flush=True)
    if done.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
        first = next((i for i, line in enumerate(lines) if re.search("error", line, re.IGNORECASE)), len(lines) - 1)
        raise BuildError(" ".join(lines[first : first + 3]))
    return output


def build(cuda, output):
    """Builds into the folder ``output``; the reason why there is no CUDA part, or None."""
    cmake = tool("cmake")
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    log = run(
        *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",  # an isolated build has another one each time
        f"-DWE_KERNELS_CUDA={cuda}",
        f"-DWE_KERNELS_WERROR={os.environ.get('WE_KERNELS_WERROR') or 'OFF'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-Dpybind11_DIR=",
    )
    run(cmake, "--build", str(folder), *(["--parallel", JOBS] if JOBS else []))
    output.mkdir(parents=True, exist_ok=True)
    shutil.copy2(folder / MODULE, output)
    left_out = re.search("CUDA part left out: (.*)", log)
    return left_out and f"built without CUDA: {left_out[1]}"


class BuildExtension(build_ext):
    def build_extension(self, ext):
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        package = SOURCE if self.editable_mode else output
        remove_module(output)
        remove_module(package)
        try:
            reason = self.try_build(output)
        except BuildError as error:
            if NATIVE == "on" or CUDA == "on":
                sys.exit(f"error: the extension we_kernels._native cannot be built: {error}")
            reason = f"not built: {error}"
        note(package, reason)

    def try_build(self, output):
        try:
            return build(CUDA, output)
        except BuildError as error:
            if CUDA != "auto":
                raise
            build("off", output)
            return f"built without CUDA: {error}"


class BuildPython(build_py):
    def run(self):
        super().run()
        if NATIVE == "off":
            package = SOURCE if self.editable_mode else Path(self.build_lib, "we_kernels")
            remove_module(package)
            note(package, "not built: WE_KERNELS_NATIVE=off at installation")


def remove_module(package):
    (package / MODULE).unlink(missing_ok=True)


def note(package, reason):
    """Writes, or removes, we_kernels/_native_reason.txt."""
    path = package / "_native_reason.txt"
    path.unlink(missing_ok=True)
    if reason:
        print(f"extension we_kernels._native {reason}", file=sys.stderr)
        path.write_text(reason + "\n", encoding="utf-8")


setup(
    ext_modules=[] if NATIVE == "off" else [Extension("we_kernels._native", [], optional=NATIVE == "auto")],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
