"""Everything that needs a GPU, within nine minutes: build, tests, compute-sanitizer, then benchmarks. ``make gpu``.

Uses what is installed (torch, Triton, nvcc, CMake, ninja, pytest) and no network. A red test voids the timings: none
are taken. Writes results/<gpu>_<date>.json and a figure, prints a short table last, and ends with status 0 (all
passed), 1 (something failed, or, with --check, a bar is missed) or 2 (there is no GPU).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import phases
import results
import torch
from phases import Ending, Phase

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
BUDGET = 525.0
"""Seconds; nine minutes less what starting and drawing take."""
STEPS = {
    "steps-small": ("resnet20", "resnet56", "resnet110", "mobilenetv2"),
    "steps-large": ("resnet50", "convnext_l", "stack_1b"),
    "compiled": ("resnet50",),
}
"""Runs of run.py; the last is about vectorised PyTorch through ``torch.compile``, which may take long to compile."""
OTHERS = ("low_rank", "grafting", "asynchronous")
"""Further benchmarks: scripts beside this one with --device and --output, each with its own bars."""
GRAPHS = "graph or stream or capture or waits or allocated"


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when a bar is missed")
    parser.add_argument("--released", type=Path, metavar="PATH", help="also time the authors' program, from a clone")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds (default {BUDGET:.0f})")
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results", help="folder of the result")
    parser.add_argument("--only", nargs="+", metavar="PHASE", help="run these phases; the others count as passed")
    parser.add_argument("--list", action="store_true", help="print the phases and their commands, run nothing")
    parser.add_argument("--dry-run", action="store_true", help="tiny networks, on the CPU if need be, no build")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    folder = options.output.resolve()
    planned = plan("cuda" if gpu else "cpu", folder, options.released, options.dry_run)
    names = [phase.name for phase in planned]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"--only: no phase {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    planned = [phase for phase in planned if not options.only or phase.name in options.only]
    if options.list:
        for phase in planned:
            print(f"{phase.name} ({phase.limit:.0f} s): {phase.skip or ' '.join(map(str, phase.command))}")
        return 0
    if not gpu and not options.dry_run:
        print(
            "make gpu needs an NVIDIA GPU and a torch built for CUDA: torch.cuda.is_available() is False "
            f"(torch {torch.__version__}). Without one, `make test` covers what can be shown; docs/gpu.md says what.",
            file=sys.stderr,
        )
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    endings = phases.run(planned, options.budget, ROOT)
    return report(endings, folder, options.check)


def plan(device: str, output: Path, released: Path | None, dry: bool) -> list[Phase]:
    """All phases in order; a dry run tries the benchmarks on tiny networks."""
    python, build = sys.executable, "build/gpu"
    kernels = ["tests/triton/test_gpu.py", "tests/cuda/test_native_cuda.py"]
    pytest = [python, "-m", "pytest", "-x"]
    workers = str(min(6, (os.cpu_count() or 2) // 2))
    parallel = ["-n", workers, "--dist", "loadgroup"] if importlib.util.find_spec("xdist") else []
    nvcc = "" if shutil.which("nvcc") else "nvcc is not on the PATH: the CUDA kernels are not built and not tested"
    nvcc = nvcc or ("" if shutil.which("cmake") else "cmake is not on the PATH")
    tool = shutil.which("compute-sanitizer")
    only = "a dry run" if dry else ""
    no_tool = only or ("" if tool else "compute-sanitizer is not on the PATH (it comes with the CUDA toolkit)")
    found = [
        Phase("build", _build(python, build), 150, skip=only or nvcc),
        Phase("tests", [*pytest, *parallel, "-m", "not slow", "tests"], 200, skip=only),
        Phase("graphs-and-streams", [*pytest, "-k", GRAPHS, *kernels], 40, skip=only),
    ]
    for check in ("memcheck", "racecheck", "initcheck"):
        command = [str(tool), "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
        command += [python, "tests/triton/sanitized.py"]
        # Without torch's pool of memory every tensor has bounds of its own.
        own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found.append(Phase(check, command, 45, skip=no_tool, environment=own, may_time_out=True))
    found += [
        Phase(name, command, limit, required=required, timing=True, skip="" if command else "not in this version")
        for name, command, limit, required in _benchmarks(python, device, output, released, dry)
    ]
    return found


def _build(python: str, folder: str) -> list[str]:
    """Configures, builds and copies the extension into the package, for the GPU at hand."""
    script = (
        "set -e; "
        f"cmake -S . -B {folder} -G Ninja -DWE_KERNELS_CUDA=on -DPython_EXECUTABLE={python}; "
        f"cmake --build {folder}; cp {folder}/_native*.so we_kernels/"
    )
    capability = "".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "90"
    return ["env", f"CUDAARCHS={capability}-real", "bash", "-c", script]


def _benchmarks(
    python: str, device: str, output: Path, released: Path | None, dry: bool
) -> list[tuple[str, list[str], float, bool]]:
    """Name, command (empty: that script does not exist), limit and whether it is required."""
    found: list[tuple[str, list[str], float, bool]] = []
    for name, models in STEPS.items():
        command = [python, str(BENCHMARKS / "run.py"), "--suite", "gpu", "--device", device]
        command += ["--output", str(_part(output, name))]
        if dry:
            command += ["--quick", "--models", "resnet20", "--repeats", "2"]
        else:
            command += ["--models", *models, "--repeats", "15"]
        if name == "compiled":
            command += ["--dtypes", "float32", "--compiled", "resnet20" if dry else models[0]]
        elif released:
            command += ["--released", str(released)]
        found.append((name, command, 100.0, name != "compiled"))
    small = ["--models", "resnet20", "--repeats", "1"] if dry else []
    for name in OTHERS:
        script = BENCHMARKS / f"{name}.py"
        command = [python, str(script), "--device", device, "--output", str(_part(output, name)), *small]
        found.append((name, command if script.exists() else [], 60.0, False))
    return found


def _part(output: Path, name: str) -> Path:
    return output / f"_{name}.json"


def report(endings: list[Ending], output: Path, check: bool) -> int:
    """Joins what the benchmarks wrote, draws it, prints the table; the exit status."""
    red = [ending for ending in endings if ending.outcome in ("failed", "timed out")]
    steps = [found for name in STEPS if (found := _take(_part(output, name)))]
    others = {name: found for name in OTHERS if (found := _take(_part(output, name)))}
    missed = False
    if steps:
        result = joined(steps)
        result |= {"phases": [ending.as_json() for ending in endings], "others": others}
        name = result.get("gpu", "cpu").lower()
        path = output / f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name).split())}_{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path}", file=sys.stderr)
        draw(result, path.with_suffix(".png"))
        print(results.headline(result))
        print(short_table(result["rows"]))
        bars = results.gpu_bars([results.Row.from_json(row) for row in result["rows"]])
        print("\n".join(map(str, bars)))
        missed = not all(bar.met for bar in bars)
    for ending in endings:
        print(ending)
    if red:
        print(f"RED: {', '.join(ending.name for ending in red)}; logs in build/gpu-logs")
    return 1 if red or not steps or (check and missed) else 0


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One result from several of the same device; of rows measured twice, the first."""
    result = dict(parts[0], models={}, rows=[])
    seen = set()
    for part in parts:
        result["models"] = part["models"] | result["models"]
        for row in part["rows"]:
            key = tuple(row[name] for name in ("model", "dtype", "op", "backend", "rate"))
            if key not in seen:
                seen.add(key)
                result["rows"].append(row)
    return result


def _take(path: Path) -> dict[str, Any]:
    """What a benchmark wrote; its file is joined to the others and goes."""
    if not path.exists():
        return {}
    values: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return values


def short_table(rows: list[dict[str, Any]]) -> str:
    """Whole steps only, in microseconds."""
    lines = [("model", "dtype", "backend", "graph us", "eager us", "host us", "of floor", "GB/s")]
    for row in rows:
        if row["op"] in ("step", "optimizer step"):
            times = [row[key] and f"{1e6 * row[key]['median']:.1f}" for key in ("graph", "seconds", "host")]
            share = "" if row["floor_share"] is None else f"{row['floor_share']:.0%}"
            cells = (row["model"], row["dtype"], row["backend"], *times, share, f"{row['gb_per_s']:.0f}")
            lines.append(tuple(cell or "" for cell in cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """The figure, if matplotlib is there."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return
    from plot_gpu import draw_gpu

    draw_gpu(result).savefig(path, dpi=150)
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
