"""What a campaign runs, in which order and within which time."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import groups
from benchmarks.phases import Phase, Runner

ROOT = Path(__file__).resolve().parents[1]
BUILD = "build/gpu"
CUDA = "/usr/local/cuda/bin"
"""Where the toolkit usually is."""
WORKERS = 8
"""Test processes at a time, beside the compilers."""
TESTS_SHARE = 0.46
"""Of a stage's time: the tests have ended by then."""
METHODS = {
    "grafting": ["--models", "resnet20"],
    "asynchronous": ["--models", "resnet20"],
    "low_rank": ["--models", "resnet20"],
    "reactivation": ["--models", "narrow_resnet18", "--pixels", "32"],
    "adamw": ["--models", "resnet56"],
    "activity": ["--models", "contiguous", "--size", "32"],
}
"""Benchmarks of single methods, and what makes each small in a dry run."""
UNIT_OPERATORS = "unit operators"
GROUP_LIMIT = 130.0
TEST_LIMIT = 90.0
"""Seconds for a group of tests, and for one test."""


@dataclass
class Stage:
    """What the plans need to know."""

    runner: Runner
    journal: Path
    tests_log: Path
    device: str
    """"cuda"; "cpu" in a dry run without a GPU."""
    capability: str
    """Of the GPU, such as "90"."""
    begin: float
    dry: bool

    @property
    def deadline(self) -> float:
        """`time.time()` at which everything ends."""
        return self.runner.deadline

    @property
    def _patience(self) -> float:
        """Limits of time are about GPUs; a dry run may share two cores with other tests."""
        return 4.0 if self.dry else 1.0

    def first(self) -> None:
        """Which kernels are right, and how long each takes."""
        self._test()
        self._time()
        self.runner.run(self.sanitizer("memcheck", 90))

    def second(self) -> None:
        """The same for the bars; memory errors and races, the other methods, and what it all is compared with."""
        self._test()
        self._time()
        self.runner.run(self.times("norms", 30, ["norms"], ["triton", "native"], "--models", "resnet50", "resnet20"))
        self.runner.together([self.sanitizer(tool, 100) for tool in ("memcheck", "racecheck", "initcheck")], WORKERS)
        for name in METHODS:
            self.runner.run(self.method(name))
        baselines = ["per_layer", "torch", *([] if self.dry else ["per_layer compiled"])]
        self.runner.run(self.times("baselines", 90, ["operations"], baselines, "--models", "resnet50"))

    def _test(self) -> None:
        """All tests; those of the extension once it is built."""
        built = self.runner.in_background(self.build())
        native = [replace(phase, needs=built) for phase in self.tests("native")]
        until = self.begin + TESTS_SHARE * (self.deadline - self.begin)
        self.runner.together([*self.tests("triton"), *native], WORKERS, until)
        built()

    def _time(self) -> None:
        """The kernels of whole steps, then each operation."""
        self.runner.run(self.times("kernels", 50, ["kernels", "kernels in a graph"], ["triton", "native"]))
        self.runner.run(self.times("operations", 150, ["operations"], ["triton", "native", "optimizers"]))
        # They have no CUDA C++ kernels, and Triton is not timed on a CPU.
        contestant, model = ("native", "narrow_resnet18") if self.dry else ("triton", "resnet18")
        self.runner.run(self.times(UNIT_OPERATORS, 40, [UNIT_OPERATORS], [contestant], "--models", model))

    def method(self, name: str) -> Phase:
        """A benchmark of a single method, whose rows go into the journal."""
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", self.device]
        command += ["--journal", str(self.journal), "--output", str(ROOT / BUILD / f"{name}.json")]
        small = [*METHODS[name], "--repeats", "1"] if self.dry else []
        return Phase(name, command + small, self._patience * 45)

    def build(self) -> Phase:
        """Configures, builds and puts the extension into the package in one move, for the GPU at hand."""
        nvcc = shutil.which("nvcc")
        script = (
            "set -e; "
            f"cmake -S . -B {BUILD} -G Ninja -DWE_KERNELS_CUDA=on -DPython_EXECUTABLE={sys.executable}; "
            f"cmake --build {BUILD}; cd {BUILD}; "
            "for name in _native*.so; do cp $name $name.new; mv $name.new ../../we_kernels/$name; done"
        )
        skip = "" if nvcc else "nvcc is not on the PATH: the CUDA kernels are neither built nor tested"
        environment = {"CUDAARCHS": f"{self.capability}-real"}
        return Phase(
            "build", ["bash", "-c", script], 200, environment=environment, skip="a dry run" if self.dry else skip
        )

    def tests(self, backend: str) -> list[Phase]:
        """One phase for each group; in a dry run the first only."""
        found = groups.groups(ROOT, backend)
        names = list(found)[:1] if self.dry else list(found)
        phases = []
        for name in names:
            options = ["--campaign-journal", self.journal, "--campaign-log", self.tests_log]
            options += ["--campaign-group", name, "--campaign-limit", str(TEST_LIMIT)]
            # No other plugins, whatever is installed, and no options of pyproject.toml: warnings of other versions'
            # libraries are no errors here.
            quiet = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "-p", "no:warnings"]
            command = [sys.executable, "-m", "pytest", "-q", "-s", "--tb=short", "--no-header", *quiet]
            command += ["-p", "benchmarks.group_plugin", *options, *found[name]]
            phases.append(Phase(name, list(map(str, command)), GROUP_LIMIT, resumes=True, environment=ONLY_OURS))
        return phases

    def times(self, name: str, limit: float, kinds: list[str], contestants: list[str], *more: str) -> Phase:
        """A run of `gpu_times`."""
        command = [sys.executable, "-m", "benchmarks.gpu_times", name, "--journal", str(self.journal)]
        command += ["--device", self.device, "--kinds", *kinds, "--contestants", *contestants]
        command += ["--until", f"{min(time.time() + self._patience * limit, self.deadline) - 8:.0f}", *more]
        if self.dry:
            models = [] if UNIT_OPERATORS in kinds else ["--models", "resnet20"]
            command += [*models, "--dtypes", "float32", "--repeats", "2"]
        return Phase(name, command, self._patience * limit, resumes=True)

    def sanitizer(self, tool: str, limit: float) -> Phase:
        """compute-sanitizer over every kernel once. Errors of API calls are other libraries' business."""
        program = shutil.which("compute-sanitizer")
        command = [program or "", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command += [sys.executable, "-m", "tests.triton.sanitized"]
        skip = "" if program else "compute-sanitizer is not on the PATH"
        # Without torch's pool of memory every tensor has bounds of its own.
        own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Phase(tool, command, limit, environment=own, skip="a dry run" if self.dry else skip)


ONLY_OURS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "2"}


def environment_of_children() -> dict[str, str]:
    """The package need not be installed, its tools need not be on the PATH, and what is compiled is shared."""
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    caches = ROOT / BUILD / "caches"
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), CUDA]),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    }
