import contextlib

import pytest
import torch

from benchmarks import memory
from benchmarks.environment import without_paths
from benchmarks.results import Bar, Row, bars, released_ratios, table
from benchmarks.timing import Contestant, Spread, ratios, spread, take_turns


def test_contestants_take_turns():
    calls, entered = [], []

    @contextlib.contextmanager
    def active(name):
        entered.append(name)
        yield

    contestants = [Contestant(n, lambda n=n: active(n), lambda n=n: calls.append(n)) for n in "abc"]
    ticks = iter(range(100))

    def clock(call):
        call()
        return next(ticks)

    times = take_turns(contestants, lambda: calls.append("."), clock, 3)
    assert "".join(calls) == ".a.b.c.b.c.a.c.a.b.a.b.c"
    assert "".join(entered) == "abcbcacababc"
    assert times == {"a": [5, 7, 9], "b": [3, 8, 10], "c": [4, 6, 11]}, "the first round is not timed"


def test_spread_and_ratios():
    assert spread([1, 2, 3, 4, 5, 6]) == pytest.approx((3.5, 2.0, 5.0))
    assert ratios([10, 30, 20], [1, 2, 5]) == pytest.approx((10, 6.4, 13)), "round by round"


def test_memory_is_measured_by_the_fastest_reader():
    buffer = memory.make_buffer(3 * 4 * memory.COLUMNS + 5, torch.device("cpu"))
    assert buffer.shape == (3, memory.COLUMNS)
    for reader in memory.readers(buffer).values():
        assert torch.isfinite(torch.as_tensor(reader())).all()
    seconds = iter([3.0, 4.0, 2.0, 5.0, 9.0, 6.0, 0.5, 0.25])  # three readers and the copy, two runs each

    def clock(call):
        call()
        return next(seconds)

    num_bytes = 4 * buffer.numel()
    measured = memory.measure(buffer, clock, 2)
    assert measured == (num_bytes, num_bytes / 2.0, "amax", num_bytes / 0.25)
    slower = measured._replace(read=1.0, reader="sum", copy=1e12)
    assert memory.best(slower, measured) == measured._replace(copy=1e12)


def test_placed_tensors_lie_in_the_buffer():
    buffer, tensors = memory.make_buffer(4 * memory.COLUMNS, torch.device("cpu")), [torch.rand(3, 5), torch.rand(40)]
    first, second = memory.place(tensors, buffer)
    assert torch.equal(first, tensors[0])
    assert torch.equal(second, tensors[1])
    assert first.data_ptr() == buffer.data_ptr() == second.data_ptr() - 64
    with pytest.raises(ValueError, match="too small for 1 tensors"):
        memory.place([torch.rand(memory.COLUMNS + 1)], buffer)


def test_last_level_cache_is_plausible():
    assert 1 << 18 <= memory.last_level_cache(torch.device("cpu")) < 1 << 32


def _row(model="resnet50", op="step", rate=0.2, backend="native", ratio=6.5, share=0.6, seconds=0.002):
    times = Spread(seconds, seconds, seconds)
    speedup = None if ratio is None else Spread(ratio, ratio, ratio)
    return Row(model, op, rate, backend, 30, times, speedup, speedup, 1_000_000, 0.5, share, share)


def test_bars():
    rows = [
        _row(op="step+norm"),
        _row(share=0.4, ratio=1.0),
        _row("resnet56", op="step+norm", ratio=24.9),
        _row("resnet50", rate=0.02, ratio=1.0),
        _row(backend="torch", ratio=1),
    ]
    assert bars(rows) == [
        Bar("resnet56", "times faster than per_layer", 25.0, 24.9),
        Bar("mobilenetv2", "times faster than per_layer", 10.0, None),
        Bar("resnet50", "times faster than per_layer", 6.0, 6.5),
        Bar("resnet50", "share of the read floor", 0.55, 0.6),
    ]
    assert [bar.met for bar in bars(rows)] == [False, False, True, True]
    assert str(bars(rows)[0]).startswith("MISSED")
    assert "not measured" in str(bars(rows)[1])


def test_table_lines_have_one_width():
    text = table([_row(), _row(op="match", share=None), _row(op="read", ratio=None, share=None, rate=None)])
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "2.000" in text
    assert "| 6.5 |" in text.replace("  ", "")
    assert "60%" in text


def test_released_ratios_compare_the_same_operation():
    rows = [
        _row(op="step", seconds=0.001),
        _row(op="step+norm released", seconds=0.002),
        _row(op="step+norm released", backend="released program", seconds=2.0),
    ]
    (line,) = released_ratios(rows)
    assert "native is 1000 times faster" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cannot import name '_native' from 'pkg' (/home/someone/x/__init__.py)",
            "cannot import name '_native' from 'pkg' (...)",
        ),
        ("gcc 12.2.0, avx512, CUDA for 80/90", "gcc 12.2.0, avx512, CUDA for 80/90"),
        (r"at C:\Users\someone\x.py: no", "at ...: no"),
    ],
)
def test_paths_are_left_out(text, expected):
    assert without_paths(text) == expected
