"""Compile every CUDA kernel for GPUs that need not be there, and print what each takes.

    python tests/cuda/resources.py [compute capability ...]

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
USAGE = re.compile(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Row(NamedTuple):
    kernel: str
    capability: int
    registers: int
    stack: int
    local: int
    shared: int
    spills: int
    """Instructions that access local memory."""
    contractions: int
    """Fused multiply-adds outside of divisions, which are made of them."""
    vector_loads: int
    """Loads of 16 bytes."""


def compile_one(source, capability, folder):
    """Rows of the kernels in one file, measured on their machine code."""
    cubin = Path(folder) / f"{source.stem}_{capability}.cubin"
    _run("nvcc", *FLAGS, f"-arch=sm_{capability}", "-cubin", source, "-o", cubin)
    usage = _run("cuobjdump", "--dump-resource-usage", cubin)
    code = dict(_functions(_run("cuobjdump", "-sass", cubin)))
    ptx = cubin.with_suffix(".ptx")
    _run("nvcc", *FLAGS, f"-arch=compute_{capability}", "-ptx", source, "-o", ptx)
    contractions = len(re.findall(r"\bfma\.", ptx.read_text()))
    return [
        Row(
            kernel=re.search(r"\d+(\w+?_kernel)E", name)[1],
            capability=capability,
            registers=int(registers),
            stack=int(stack),
            local=int(local),
            shared=int(shared),
            spills=len(re.findall(r"\b(?:STL|LDL)\b", code[name])),
            contractions=contractions,
            vector_loads=len(re.findall(r"\bLDG\.E\.128\b|\bLDG\.E\.128\.", code[name])),
        )
        for name, registers, stack, shared, local in USAGE.findall(usage)
    ]


def _functions(sass):
    for part in re.split(r"\n\s*Function : ", sass)[1:]:
        name, _, body = part.partition("\n")
        yield name.strip(), body


def _run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def table(rows):
    """The rows as aligned text."""
    lines = [Row._fields, *([str(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(Row._fields))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def faults(rows):
    """One line per kernel that must not ship."""
    for row in rows:
        if row.spills or row.stack or row.local or row.contractions:
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
