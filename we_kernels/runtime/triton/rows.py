"""Tiles of filters for kernels with a program per tile: what a program reads first, and how many filters it takes."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton.language as tl

TILE_FIELDS = ("layer", "row", "filters", "length", "stride", "first_filter", "channels", "kind")
"""Columns of the table of tiles: all that a program needs before it can read weights, so that it waits for one line of
memory. ``length`` and ``stride``: of a filter, in elements; ``kind``: see `kind_of`."""


def _column(name: str) -> tl.constexpr:
    return tl.constexpr(TILE_FIELDS.index(name))


TILE_WIDTH = tl.constexpr(len(TILE_FIELDS))
TILE_LAYER, TILE_ROW, TILE_FILTERS, TILE_LENGTH = map(_column, ("layer", "row", "filters", "length"))
TILE_STRIDE, TILE_FIRST, TILE_CHANNELS, TILE_KIND = map(_column, ("stride", "first_filter", "channels", "kind"))

STRIDED, SHORT, MEDIUM, LONG = (tl.constexpr(kind) for kind in range(4))
"""Kinds of filters: with gaps, and gapless ones by their number of elements."""
MEDIUM_FROM, LONG_FROM = 256, 1024
SHORT_ROWS, SHORT_COLUMNS = tl.constexpr(32), tl.constexpr(32)
MEDIUM_ROWS, MEDIUM_COLUMNS = tl.constexpr(8), tl.constexpr(256)
LONG_ROWS, LONG_COLUMNS = tl.constexpr(4), tl.constexpr(512)


def kind_of(length: int, dense: bool) -> int:
    """How filters of so many elements are read."""
    if not dense:
        return int(STRIDED.value)
    return int((SHORT if length < MEDIUM_FROM else MEDIUM if length < LONG_FROM else LONG).value)


def rows_per_program(kind: int) -> int:
    """How many filters of a kind one program takes."""
    return int((1, SHORT_ROWS.value, MEDIUM_ROWS.value, LONG_ROWS.value)[kind])
