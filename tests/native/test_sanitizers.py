"""The native core's stress program under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
LEVELS = {
    "simd_avx2.cpp": AVX2,
    "simd_avx512.cpp": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"],
}
COMPILER = shutil.which("g++")
IS_X86 = platform.machine() in ("x86_64", "AMD64")


def compile_one(source, sanitizer, folder):
    target = folder / f"{source.stem}.o"
    extra = LEVELS.get(source.name, [])
    define = ["-DWE_KERNELS_X86=1"] if IS_X86 else []
    command = [COMPILER, *FLAGS, *define, *extra, *sanitizer, "-c", source, "-o", target]
    subprocess.run(command, check=True)
    return target


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs g++")
@pytest.mark.skipif(not SOURCES.is_dir(), reason="needs the sources")
@pytest.mark.parametrize(("sanitizer", "rounds"), [("address,undefined", 20), ("thread", 6)])
def test_stress_program(sanitizer, rounds, tmp_path):
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    sources = [*(SOURCES / "cpu").glob("*.cpp"), *(SOURCES / "tests").glob("stress*.cpp")]
    sources = [source for source in sources if IS_X86 or source.name not in LEVELS]
    sources.sort(key=lambda source: -source.name.startswith("simd_"))  # the long ones first
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compile_one(source, flags, tmp_path), sources))
    program = tmp_path / "stress"
    subprocess.run([COMPILER, *flags, *objects, "-o", program, "-pthread"], check=True)
    done = subprocess.run([program, str(rounds)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "all results agree" in done.stdout
