"""Tables and bars of a campaign, from its journal."""

import pytest

from benchmarks import gpu_report, plot_gpu, results
from benchmarks.journal import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "results.jsonl")


def write_row(journal, model, backend, graph, op="step", dtype="float32", share=None, host=None, eager=1.0):
    spread = [None if x is None else results.Spread(x, x, x) for x in (eager, graph, host)]
    row = results.Row(
        *(model, op, 0.2, backend, 3, spread[0], None, None, 10, 1.0, None, share, dtype, spread[1], spread[2])
    )
    journal.write("row", copy=1e-5, **row.as_json())


@pytest.fixture
def measured(journal):
    write_row(journal, "resnet50", "triton", 60e-6, share=0.7, host=99e-6)
    write_row(journal, "resnet50", "triton", 50e-6, dtype="bfloat16", share=0.4, host=1e-6)
    write_row(journal, "resnet50", "native", 1e-6, dtype="bfloat16", share=0.9, host=1e-6)
    write_row(journal, "resnet50", results.ADAMW, 130e-6, op="optimizer step", share=0.9, host=1e-6)
    write_row(journal, "stack_1b", "triton", 2e-3, share=0.9, host=1e-6)
    write_row(journal, "stack_1b", results.ADAMW, 3.9e-3, op="optimizer step", share=0.9, host=1e-6)
    write_row(journal, "resnet20", "triton", 24e-6, share=0.1, host=1e-6)
    return journal


def test_bars(measured):
    bars = gpu_report.bars(measured.read())
    assert {(bar.model, bar.what): bar.met for bar in bars["triton"]} == {
        ("resnet50", "times its floor, float32"): True,
        ("resnet50", "times its floor, bfloat16"): False,
        ("stack_1b", "times its floor, float32"): True,
        ("resnet20", "microseconds"): True,
        ("resnet50", "of a fused AdamW step"): True,
        ("stack_1b", "of a fused AdamW step"): False,
        ("resnet50", "microseconds of the host"): True,
    }
    assert [bar.what for bar in bars["native"] if bar.met] == ["times its floor, bfloat16"]
    assert [(bar.model, bar.what) for bar in gpu_report.missed_bars(measured)] == [
        ("stack_1b", "of a fused AdamW step")
    ]


@pytest.mark.parametrize(
    ("group", "op", "void", "bars"),
    [
        ("triton-matching", "step", True, False),
        ("triton-crossover", "importance", False, False),
        ("triton-large", "step", False, True),
        ("native-matching", "step", False, True),
    ],
)
def test_a_red_test_voids_the_times_of_its_kernel_only(measured, group, op, void, bars):
    write_row(measured, "resnet50", "triton", 31e-6, op="importance", share=0.9, host=1e-6)
    before = gpu_report.bars(measured.read())["triton"]
    measured.write("test ends", job=group, test="tests/x.py::test_a", outcome="failed", when="call", reason="wrong")
    assert (("triton", op) in gpu_report.void_operations(measured.read())) == void
    after = gpu_report.bars(measured.read())["triton"]
    assert (before == after) == bars
    lines = [line for line in gpu_report.times(measured.read()) if line[:3] == ("resnet50", "float32", "triton")]
    assert [line[gpu_report.TIMES.index(op)] == "void" for line in lines] == [void]


def test_a_group_whose_process_died_voids_too(measured):
    measured.write("process died", phase="triton-importance", status=-11, during="during test_a", tail=[])
    assert ("triton", "step") in gpu_report.void_operations(measured.read())
    assert "DIED triton-importance, status -11, during test_a" in gpu_report.report(measured)


def test_a_journal_that_has_hardly_begun_is_reported(journal):
    assert "bar" not in gpu_report.report(journal)
    journal.write("tests found", job="triton-large", number=3, left=3)
    assert gpu_report.test_counts(journal.read()) == [("triton-large", 0, 0, 0, 3)]
    assert "triton-large" in gpu_report.report(journal)
    assert not gpu_report.is_red(journal)


def test_rows_of_other_methods(journal):
    seconds = {"median": 2e-6, "p20": 1e-6, "p80": 3e-6}
    journal.write("row of a method", method="grafting", model="resnet50", op="blend", layers=3, seconds=seconds)
    assert gpu_report.methods(journal.read()) == [("resnet50", "grafting", "blend, seconds 2.0 us")]


def test_figure(measured):
    figure = plot_gpu.draw_gpu(measured)
    assert [axes.get_title() for axes in figure.axes] == ["float32", "bfloat16"]
