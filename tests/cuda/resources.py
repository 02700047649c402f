"""Compile every CUDA kernel for GPUs that need not be there, and print what each takes.

    python -m tests.cuda.resources [compute capability ...]

Exits with 1 if a kernel spills registers, or contracts a multiplication and an addition.
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CAPABILITIES = (80, 90, 100)
CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", f"-I{CSRC}")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Row(NamedTuple):
    kernel: str
    capability: int
    registers: int
    shared: int
    stack: int
    spills: int
    """Bytes of spill loads and stores."""
    contractions: int
    """Fused multiply-adds in the kernel's PTX."""
    vector_loads: int
    """Loads of 16 bytes."""


def compile_one(source, capability, folder):
    """Rows of the kernels in one file, as ptxas reports them."""
    work = Path(folder) / f"{source.stem}_{capability}"
    work.mkdir()
    command = ("nvcc", *FLAGS, f"-arch=sm_{capability}", "-Xptxas=-v", "--keep", "--keep-dir", work, "-cubin", source)
    report = _run(*command, "-o", work / "kernels.cubin")
    ptx = {name: body for path in work.glob("*.ptx") for name, body in _entries(path.read_text())}
    return [
        Row(
            kernel=re.search(r"\d+([a-z_]+_kernel)E", entry["name"])[1],
            capability=capability,
            registers=int(entry["registers"]),
            shared=int(shared[1]) if (shared := re.search(r"(\d+) bytes smem", entry["rest"])) else 0,
            stack=int(entry["stack"]),
            spills=int(entry["stores"]) + int(entry["loads"]),
            contractions=len(re.findall(r"\bfma\.", ptx[entry["name"]])),
            vector_loads=len(re.findall(r"\bld\.(?:global\.)?(?:nc\.)?v(?:4\.\w32|2\.\w64)", ptx[entry["name"]])),
        )
        for entry in ENTRY.finditer(report)
    ]


def _entries(ptx):
    for part in re.split(r"\.entry\s+", ptx)[1:]:
        yield re.match(r"\w+", part)[0], part


def _run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def table(rows):
    """The rows as aligned text."""
    lines = [Row._fields, *([str(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(Row._fields))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def faults(rows):
    """One line per kernel that must not ship."""
    for row in rows:
        if row.spills or row.stack or row.contractions:
            yield f"{row.kernel} sm_{row.capability}: {row}"
        if row.kernel in ("importance_kernel", "match_and_cross_kernel") and row.vector_loads == 0:
            yield f"{row.kernel} sm_{row.capability}: no vector loads"


def main(capabilities):
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        jobs = [(source, capability, folder) for capability in capabilities for source in sources]
        rows = [row for part in pool.map(lambda job: compile_one(*job), jobs) for row in part]
    print(table(rows))
    found = list(faults(rows))
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]] or CAPABILITIES))
