"""Every kernel compiles for sm_80, sm_90 and sm_100, without spills: the interpreter accepts what the compiler refuses.

In a process of its own, because the interpreter is on in this one.
"""

import re

import pytest

pytest.importorskip("triton")

from tests.processes import ROOT, run_module


def names_of_compiled(capability, cache, *options):
    done = run_module(
        "tests.triton.aot_table", *options, capability, TRITON_INTERPRET=None, TRITON_CACHE_DIR=str(cache)
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(rf"^(\w+) +{capability} ", done.stdout, re.MULTILINE)


def test_a_kernel_of_each_method_compiles_without_spills(tmp_path):
    from tests.triton.aot_table import kernels, method_of

    methods = [method_of(kernels()[f"{name}_kernel"]) for name in names_of_compiled(90, tmp_path, "--sample")]
    assert sorted(methods) == sorted({method_of(kernel) for kernel in kernels().values()})


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_spills(capability, tmp_path):
    names = names_of_compiled(capability, tmp_path)
    assert len(names) == 3 + 4 * 6 + 2 + 1 + 2 + 3 + 4 + 2 + 4 * 8 + 4 * 6 + 3 * 2  # kernels and their specialisations


def test_growth_is_seen():
    from tests.triton import aot_table

    row = aot_table.Row("crossover", 90, "", 80, 0, 0, 0, 4000, 1, 9, 0, 0, 0)
    assert list(aot_table.faults([row])) == []
    for grown in (row._replace(instructions=4001), row._replace(barriers=3), row._replace(vector_loads=0)):
        assert len(list(aot_table.faults([grown]))) == 1


def test_narrow_offsets_are_seen():
    from tests.triton import aot_table

    line = "%7 = tt.addptr %5, %6 : tensor<64x!tt.ptr<f16>>, tensor<64x{}> loc(#loc1)"
    assert aot_table.count_narrow_offsets(line.format("i32"), "fp16") == 1
    assert aot_table.count_narrow_offsets(line.format("i64"), "fp16") == 0
    assert aot_table.count_narrow_offsets(line.format("i32"), "bf16") == 0


def test_constants_stand_on_the_left():
    """In Triton 3.3 ``tl.float64 == DTYPE`` is False for every DTYPE."""
    for path in ROOT.glob("we_kernels/*/triton/*.py"):
        assert re.findall(r"tl\.\w+ [=!]= [A-Z]+\b", path.read_text()) == [], path
