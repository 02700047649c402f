"""Timing of operations and kernels on a GPU, as far as it goes without one: a GPU whose calls do nothing."""

import time
from contextlib import nullcontext

import pytest
import torch

from benchmarks import gpu_report, gpu_times, gpu_timing
from benchmarks import journal as journal_module
from benchmarks.baselines import Backend
from benchmarks.gpu_timing import GpuTimer
from benchmarks.journal import Journal, Steps
from benchmarks.kernel_times import LABEL, kernels_in


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


class Graph:
    captured = 0

    def capture_begin(self):
        Graph.captured += 1

    def capture_end(self):
        pass

    def replay(self):
        time.sleep(0.002)


@pytest.fixture
def gpu(monkeypatch):
    """CPU tensors, timed as on a GPU."""
    for name, value in {
        "Event": Event,
        "CUDAGraph": Graph,
        "Stream": lambda: None,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def timer(device, repeats):
        made = GpuTimer(device, repeats)
        made.on_gpu = True
        return made

    monkeypatch.setattr(gpu_times, "GpuTimer", timer)
    return timer(torch.device("cpu"), 3)


def test_every_call_is_prepared_and_swept_first(gpu, monkeypatch):
    order = []
    monkeypatch.setattr(gpu, "sweep", lambda: order.append("sweep"))
    eager, host = gpu.eager(lambda: order.append("call"), lambda: order.append("prepare"))
    assert order == ["prepare", "sweep", "call"] * 5
    assert 0 < host.median <= eager.median
    order.clear()
    graph = gpu.graph(lambda: order.append("call"), lambda: order.append("prepare"))
    assert order == ["call"] + ["prepare", "sweep"] * 5, "captured once, then replayed"
    assert graph.median == pytest.approx(0.002, rel=0.9)
    assert gpu.copy(1 << 12) is gpu.copy(1 << 12)


def test_why_a_capture_failed_is_told(gpu):
    def refused():
        raise RuntimeError("a table is not on the device yet")

    with pytest.raises(RuntimeError, match="a table is not"):
        gpu_timing.captured(refused)


def test_no_graph_on_a_cpu():
    assert GpuTimer(torch.device("cpu"), 1).graph(lambda: None) is None


def run(tmp_path, *more):
    path = tmp_path / "results.jsonl"
    arguments = ["job", "--journal", str(path), "--device", "cpu", "--models", "resnet20", "--dtypes", "float32"]
    assert gpu_times.main([*arguments, "--repeats", "2", *more]) == 0
    return Journal(path)


def test_rows(tmp_path, gpu):
    journal = run(tmp_path, "--kinds", "operations", "norms", "--contestants", "native", "optimizers", "triton")
    rows = {(row["backend"], row["op"]): row for row in journal.read("row")}
    assert {op for backend, op in rows if backend == "native"} == {*gpu_times.OPERATIONS, "step+norm"}
    assert ("AdamW(fused=True)", "optimizer step") in rows
    for row in rows.values():
        assert row["graph"]["median"] >= 0.002
        assert row["floor_share"] == pytest.approx(row["copy"] / row["graph"]["median"])
    assert journal.read("not measured")[0]["backend"] == "triton"
    assert not journal.read("wrong", "error")
    assert [line[:3] for line in gpu_report.times(journal.read())] == [
        ("resnet20", "float32", backend) for backend in dict.fromkeys(backend for backend, _ in rows)
    ]
    (line,) = [line for line in gpu_report.times(journal.read()) if line[2] == "native"]
    assert len(line) == len(gpu_report.TIMES)
    assert all(line)


def test_a_wrong_operation_is_reported_and_the_others_are_timed(tmp_path, gpu, monkeypatch):
    match, crossover = Backend.match, Backend.crossover

    def wrong(self, case, importance):
        found = match(self, case, importance)
        return found.roll(1) if self.name == "native" else found

    def failing(self, case, donor):
        if self.name == "native":
            raise RuntimeError("CUDA error: invalid argument")
        crossover(self, case, donor)

    monkeypatch.setattr(Backend, "match", wrong)
    monkeypatch.setattr(Backend, "crossover", failing)
    journal = run(tmp_path, "--kinds", "operations", "--contestants", "native")
    assert [(line["op"], line["backend"]) for line in journal.read("wrong")] == [("match", "native")]
    assert "differ from the reference" in journal.read("wrong")[0]["detail"]
    assert [line["detail"] for line in journal.read("error")] == ["RuntimeError: CUDA error: invalid argument"]
    assert [row["op"] for row in journal.read("row")] == ["importance", "step"]
    assert journal.read("job ends")
    assert gpu_report.is_red(journal)
    assert "WRONG resnet20 float32 native match" in gpu_report.report(journal)


def test_what_cannot_be_captured_is_timed_without(tmp_path, gpu, monkeypatch):
    def refuse(self):
        raise RuntimeError("capture")

    monkeypatch.setattr(Graph, "capture_begin", refuse)
    monkeypatch.setattr(GpuTimer, "copy", lambda self, num_bytes: gpu_timing.spread([1e-6]))
    journal = run(tmp_path, "--kinds", "operations", "--contestants", "native")
    assert [row["graph"] for row in journal.read("row")] == [None] * 4
    assert {line["op"] for line in journal.read("error")} == {f"{op} in a graph" for op in gpu_times.OPERATIONS}


@pytest.mark.parametrize("broken", [False, True])
def test_a_process_whose_device_is_broken_leaves(tmp_path, monkeypatch, broken):
    class Left(Exception):
        pass

    def leave(status):
        raise Left(status)

    def synchronize():
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(journal_module.os, "_exit", leave)
    steps = Steps(Journal(tmp_path / "results.jsonl"), "job", 5.0)
    with pytest.raises(Left, match=str(journal_module.BROKEN)) if broken else nullcontext():
        journal_module.leave_if_broken(steps)
    errors = [line["error"] for line in steps.journal.read("device broken")]
    assert errors == (["CUDA error: an illegal memory access was encountered"] if broken else [])


def test_steps_that_were_begun_are_not_done_again(tmp_path):
    steps = Steps(Journal(tmp_path / "results.jsonl"), "job", 5.0)
    with steps.step("resnet20 float32 native operations"):
        pass
    journal = run(tmp_path, "--kinds", "operations", "--contestants", "native")
    assert not journal.read("row")


def test_nothing_is_begun_when_the_time_is_over(tmp_path):
    journal = run(tmp_path, "--kinds", "operations", "--contestants", "native", "--until", "1")
    assert [line["step"] for line in journal.read("not reached")] == ["resnet20 float32 native operations"]
    assert not journal.read("row")


def test_kernels_of_a_trace():
    events = []
    for start in (0.0, 1000.0, 2000.0):
        events.append({"ph": "X", "cat": "user_annotation", "name": LABEL, "ts": start, "dur": 500.0})
        events.append({"ph": "X", "cat": "gpu_user_annotation", "name": LABEL, "ts": start + 10, "dur": 50.0})
        for name, at, took in (("second_kernel", 40.0, 5.0), ("first_kernel", 10.0, 20.0 + start / 1000)):
            arguments = {"grid": [7, 1, 1], "registers per thread": 32}
            events.append({"ph": "X", "cat": "kernel", "name": name, "ts": start + at, "dur": took, "args": arguments})
        events.append({"ph": "X", "cat": "kernel", "name": "sweep", "ts": start + 900, "dur": 50.0})
    events.append({"ph": "X", "cat": "user_annotation", "name": LABEL, "ts": 3000.0, "dur": 500.0})
    events.append({"ph": "X", "cat": "gpu_memcpy", "name": "once only", "ts": 3010.0, "dur": 1.0})
    events.append({"ph": "i", "name": "something"})
    # The device's clock runs behind: the kernel seems to begin before the call that launched it.
    early = {"ph": "X", "cat": "kernel", "name": "first_kernel", "ts": 3999.0, "dur": 22.0, "args": {"correlation": 7}}
    late = {"ph": "X", "cat": "kernel", "name": "second_kernel", "ts": 4029.0, "dur": 5.0, "args": {"correlation": 8}}
    events += [early, late, {"ph": "X", "cat": "user_annotation", "name": LABEL, "ts": 4000.0, "dur": 500.0}]
    events += [
        {"ph": "X", "cat": cat, "name": "launch", "ts": 4001.0, "dur": 1.0, "args": {"correlation": number}}
        for cat, number in (("cuda_driver", 7), ("cuda_runtime", 8))
    ]
    found = kernels_in({"traceEvents": events})
    assert (found["calls"], found["span_us"], found["sum_us"]) == (4, 35.0, 26.5)
    assert found["kernels"] == [
        {"name": "first_kernel", "us": 21.5, "least_us": 20.0, "grid": [7, 1, 1], "registers": 32},
        {"name": "second_kernel", "us": 5.0, "least_us": 5.0, "grid": [7, 1, 1], "registers": 32},
    ]
    assert kernels_in({"traceEvents": []}) == {"calls": 0, "kernels": []}


def test_kernels_are_journalled(tmp_path, monkeypatch):
    kernels = [{"name": "void we::importance_kernel<float>(int)", "us": 30.25}, {"name": "rank_kernel", "us": 4.0}]
    found = {"calls": 9, "span_us": 40.0, "sum_us": 34.25}
    monkeypatch.setattr(gpu_times, "kernel_times", lambda *_: found | {"kernels": list(kernels)})
    journal = run(tmp_path, "--kinds", "kernels", "kernels in a graph", "--contestants", "native")
    assert [line["in_graph"] for line in journal.read("kernels of a step")] == [False, True]
    assert all(line["correct"] and line["number"] == 2 for line in journal.read("kernels of a step"))
    assert gpu_report.kernel_lines(journal.read()) == [("resnet20", "float32", "native", "importance 30.2 + rank 4.0")]


def test_a_real_profile_is_read(tmp_path):
    journal = run(tmp_path, "--kinds", "kernels", "--contestants", "native")
    (line,) = journal.read("kernels of a step")
    assert line["number"] == 0, "a CPU has none"
