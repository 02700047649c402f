"""Compile every kernel in every specialisation for GPUs that need not be there, and print what each takes.

    python -m tests.triton.aot_table [--sample] [compute capability ...]

With ``--sample`` one specialisation of one kernel of each method. Exits with 1 if a kernel spills registers, flushes
subnormals or, where bits count, contracts a multiplication and an addition.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

CAPABILITIES = (80, 90, 100)

TYPES = {
    "pointers": "*i64",
    "layers": "*i64",
    "tiles": "*i32",
    "row_tiles": "*i64",
    "importance": "*fp32",
    "members": "*i32",
    "rates": "*fp64",
    "keys": "*i32",
    "candidates": "*i32",
    "larger": "*i32",
    "counted": "*i32",
    "poisoned": "*i32",
    "finished": "*i32",
    "threshold": "*fp32",
    "segments": "*i64",
    "ratios": "*fp32",
    "groups": "i32",
    "descending": "*i32",
    "programs": "*i32",
    "order": "*i32",
    "donor": "*i32",
    "slots": "*i32",
    "slot_table": "*i32",
    "limit": "i32",
    "starvation": "*i32",
    "inferior": "*i32",
    "first_match": "*i32",
    "layer_of_filter": "*i32",
    "filters_in_bank": "i32",
    "num_layers": "i32",
    "row_starts": "*i64",
    "units": "*fp32",
    "tile_starts": "*i32",
    "sums": "*fp32",
    "maximum_bits": "*i32",
    "mean": "*fp32",
    "rate": "*fp64",
    "seed": "*i64",
    "step": "*i64",
    "selected": "*u8",
    "places": "*i64",
    "restore": "i32",
    "parameters": "*i64",
    "grads": "*i64",
    "buffers": "*i64",
    "layouts": "*i64",
    "fresh": "*i32",
    "scalars": "*fp64",
    "lr": "*fp64",
    "fields": "*i64",
    "row_resets": "*i64",
    "column_resets": "*i64",
    "counters": "*i64",
    "known": "*fp64",
    "steps_on_device": "i32",
    "on_device": "i32",
    "logarithms": "*fp64",
    "corrections": "*u8",
    "corrections_in_all": "i32",
    "means": "*i64",
    "squares": "*i64",
    "maxima": "*i64",
    "parameter_layers": "*i64",
    "grad_layers": "*i64",
    "mean_layers": "*i64",
    "square_layers": "*i64",
    "maximum_layers": "*i64",
    "decay": "i32",
    "has_maxima": "i32",
    "decays": "i32",
    "has_momentum": "i32",
    "nesterov": "i32",
    "maximize": "i32",
    "chunks": "*i32",
    "ranges": "*i64",
    "bin_counts": "*i64",
    "bins": "i32",
    "table_stride": "i32",
    "runs": "*i32",
    "coefficients": "*fp32",
    "columns": "i32",
    "networks": "i32",
    "written": "i32",
    "parts": "i32",
    "activation": "*DTYPE",
    "part_sums": "*fp64",
    "column_stride": "i32",
    "positions": "i32",
    "part_size": "i32",
    "size1": "i32",
    "size2": "i32",
    "size3": "i32",
    "stride0": "i32",
    "stride1": "i32",
    "stride2": "i32",
    "stride3": "i32",
    "unit_sums": "*DTYPE",
    "channels": "i32",
    "run": "i32",
    "times": "i32",
    "overwrite": "i32",
    "plans": "*i64",
    "bounds": "*fp64",
    "unit_table": "*i32",
    "revived": "*u8",
    "given": "*fp32",
    "targets": "*fp32",
    "scaling": "i32",
    "part_counts": "*i64",
    "drawn_norms": "*i64",
    "activity": "*fp32",
    "limits": "*fp64",
    "dormant": "*u8",
    "parents": "*i32",
    "count": "i32",
}
"""Of the kernels' run-time parameters, by name; ``*DTYPE``: elements of the constant of that name."""

MAY_CONTRACT = ("overlap", "sgd", "adamw", "correction")
"""Matrix products: multiply and add is what their instructions do. SGD and Adam: PyTorch's kernels contract, too; the
exponential function of float64 does."""

MAY_FLUSH = ("correction",)
"""The exponential function of float64, which looks at the exponent as at a float32."""

VECTORS = ("importance", "snapshot", "sgd", "adamw", "crossover", "match_and_cross")
"""Read their weights 16 bytes at a time where they lie so."""

MOST = {"importance": (3100, 16), "matching": (3700, 72), "crossover": (4000, 2), "match_and_cross": (4300, 2)}
"""Instructions and barriers, in any specialisation (Triton 3.3 has the most): so that a kernel does not grow unseen."""

SHORT_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


class Variant(NamedTuple):
    """A kernel with its compile-time constants and launch options."""

    kernel: Any
    constants: dict[str, Any]
    options: dict[str, Any]

    def key(self):
        return key(self.kernel.__name__, self.constants | self.options)


class Row(NamedTuple):
    """What one compiled kernel takes; bytes per thread for ``stack``, per block for ``shared``."""

    name: str
    capability: int
    constants: str
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    barriers: int
    vector_loads: int
    flushes: int
    contractions: int
    narrow_offsets: int


def key(name, constants):
    return name, tuple(sorted((constant, str(value)) for constant, value in constants.items()))


def type_of(argument):
    """Triton's name of an argument's type."""
    return f"*{SHORT_NAMES[argument.dtype]}" if isinstance(argument, torch.Tensor) else "i32"


def kernels():
    from we_kernels.activity.triton import activity
    from we_kernels.adamw.triton import adamw
    from we_kernels.asynchronous.triton import select, sgd, snapshot
    from we_kernels.evolution.triton import crossover, importance, matching, rank
    from we_kernels.grafting.triton import bins, blend
    from we_kernels.overlap.triton import overlap
    from we_kernels.reactivation.triton import dormant, sums, write

    found = [
        importance.importance_kernel,
        matching.matching_kernel,
        rank.donor_kernel,
        crossover.crossover_kernel,
        crossover.match_and_cross_kernel,
        overlap.unit_rows_kernel,
        overlap.overlap_kernel,
        overlap.overlap_mean_kernel,
        select.select_kernel,
        snapshot.snapshot_kernel,
        sgd.sgd_kernel,
        adamw.correction_kernel,
        adamw.adamw_kernel,
        bins.range_kernel,
        bins.bins_kernel,
        bins.filter_bins_kernel,
        blend.blend_kernel,
        activity.activity_parts_kernel,
        activity.activity_sums_kernel,
        dormant.dormant_kernel,
        dormant.dormant_parents_kernel,
        sums.unit_sums_kernel,
        write.write_units_kernel,
    ]
    return {kernel.__name__: kernel for kernel in found}


def signature(name, dtype=None):
    """Types of a kernel's run-time arguments, in order; ``dtype``: its constant DTYPE."""
    types = _types_of(kernels()[name], dtype)
    return [of for of in types.values() if of != "constexpr"]


def _types_of(kernel, dtype):
    return {name: TYPES.get(name, "constexpr").replace("DTYPE", str(dtype)) for name in kernel.arg_names}


def variants():
    """Every specialisation that the operators launch."""
    from we_kernels.activity.triton import launches as activity
    from we_kernels.adamw.triton import adamw
    from we_kernels.asynchronous.triton import launches as asynchronous
    from we_kernels.asynchronous.triton import select, sgd
    from we_kernels.evolution.triton import crossover, launches, rank, threshold
    from we_kernels.grafting.triton import bins, blend
    from we_kernels.overlap.triton import overlap
    from we_kernels.reactivation.triton import dormant, sums, write
    from we_kernels.runtime.triton.values import TRITON_DTYPES

    kernel, plain = kernels(), {"num_warps": 4, "maxnreg": None}
    constants = {"CHUNK": threshold.CHUNK, "PIVOTS": threshold.PIVOTS}
    constants |= {"LANES": launches.THRESHOLD_LANES, "ITEMS": launches.THRESHOLD_ITEMS}
    constants |= {"CANDIDATES": launches.THRESHOLD_CANDIDATES}
    constants |= {"ROWS": rank.RANK_ROWS, "KEYS": rank.KEYS, "LAYERS": launches.STARVATION_TILE}
    for starves in (True, False):
        options = {"num_warps": launches.MATCHING_WARPS, "maxnreg": None}
        yield Variant(kernel["matching_kernel"], constants | {"STARVES": starves}, options)
    yield Variant(kernel["donor_kernel"], {"BLOCK": 256}, plain)
    limited = {"num_warps": 4, "maxnreg": bins.MAX_REGISTERS}
    for index, dtype in enumerate(TRITON_DTYPES):
        yield Variant(kernel["importance_kernel"], {"DTYPE": dtype}, plain)
        for released in (False, True):
            constants = {"DTYPE": dtype, "INDEX": index, "RELEASED": released}
            one_warp = {"num_warps": crossover.WARPS, "maxnreg": crossover.max_registers(index, released)}
            yield Variant(kernel["crossover_kernel"], constants, one_warp)
            yield Variant(kernel["match_and_cross_kernel"], constants | {"SEARCH": crossover.SEARCH}, one_warp)
        constants = {"DTYPE": dtype, "INDEX": index, "DEPTH": overlap.OVERLAP_DEPTH, "BLOCK": 256}
        yield Variant(kernel["unit_rows_kernel"], constants, plain)
        chunked = {"DTYPE": dtype, "SIZE": bins.CHUNK}
        yield Variant(kernel["range_kernel"], chunked, limited)
        # More bins change constants only: one dtype shows that they compile.
        for count in bins.BIN_COUNTS[: 1 + (dtype == TRITON_DTYPES[0])]:
            yield Variant(kernel["bins_kernel"], chunked | {"BINS": count}, limited)
            yield Variant(kernel["filter_bins_kernel"], {"DTYPE": dtype, "INDEX": index, "BINS": count}, limited)
        for per_filter in (False, True):
            constants = {"DTYPE": dtype, "PER_FILTER": per_filter, "SIZE": blend.BLEND_TILE}
            options = {"num_warps": 4, "maxnreg": blend.MAX_REGISTERS}
            yield Variant(kernel["blend_kernel"], constants, options)
    for dtype in TRITON_DTYPES[:2]:
        constants = {"ACC": dtype, "TILE": overlap.OVERLAP_TILE, "DEPTH": overlap.OVERLAP_DEPTH}
        yield Variant(kernel["overlap_kernel"], constants, {"num_warps": 8, "maxnreg": None})
    yield Variant(kernel["overlap_mean_kernel"], {"BLOCK": 256}, plain)
    for dtype, inner, nest in product(TRITON_DTYPES, (True, False), (1, 2, 4)):
        columns, positions = activity.TILES[inner]
        constants = {"DTYPE": dtype, "INNER": inner, "NEST": nest, "COLUMNS": columns, "POSITIONS": positions}
        yield Variant(kernel["activity_parts_kernel"], constants, plain)
    for dtype in TRITON_DTYPES[:2]:
        yield Variant(kernel["activity_sums_kernel"], {"DTYPE": dtype, "BLOCK": activity.SUMS_BLOCK}, plain)
    for replacement in (False, True):
        constants = {"ROWS": asynchronous.SELECT_ROWS, "KEYS": asynchronous.SELECT_KEYS, "REPLACEMENT": replacement}
        yield Variant(kernel["select_kernel"], constants, {"num_warps": 4, "maxnreg": select.MAX_REGISTERS})
    for bits in dict.fromkeys(asynchronous.BITS):
        yield Variant(kernel["snapshot_kernel"], {"DTYPE": bits}, plain)
    for dtype in TRITON_DTYPES:
        yield Variant(
            kernel["sgd_kernel"], {"DTYPE": dtype, "BLOCK": sgd.BLOCK}, {"num_warps": sgd.WARPS, "maxnreg": None}
        )
        for dense in (True, False):
            constants = {"DTYPE": dtype, "BLOCK": adamw.BLOCK, "STRIP": adamw.STRIP, "DENSE": dense}
            options = {"num_warps": adamw.WARPS, "maxnreg": adamw.DENSE_REGISTERS if dense else None}
            yield Variant(kernel["adamw_kernel"], constants, options)
        constants = {"DTYPE": dtype, "BLOCK": sums.BLOCK, "SCAN": sums.SCAN}
        yield Variant(kernel["unit_sums_kernel"], constants, plain)
        constants = {"DTYPE": dtype, "BLOCK": write.BLOCK, "PARTS": sums.MOST_PARTS}
        yield Variant(kernel["write_units_kernel"], constants, plain)
    for name in ("dormant_kernel", "dormant_parents_kernel"):
        yield Variant(kernel[name], {"BLOCK": dormant.BLOCK}, plain)
    for dtype in TRITON_DTYPES[:2]:
        yield Variant(kernel["correction_kernel"], {"ACC": dtype, "ENTRIES": adamw.ENTRIES}, plain)


def method_of(kernel):
    """The package in we_kernels that it is in."""
    return kernel.fn.__module__.split(".")[1]


def sample(variants):
    """One of each method, of its first kernel: whose constants those before it had least, so that all dtypes appear."""
    of_method, chosen, seen = {}, [], Counter()
    for variant in variants:
        found = of_method.setdefault(method_of(variant.kernel), [])
        if not found or found[0].kernel is variant.kernel:
            found.append(variant)
    for found in of_method.values():
        chosen.append(min(found, key=lambda variant: sum(seen[constant] for constant in variant.key()[1])))
        seen.update(chosen[-1].key()[1])
    return chosen


def compile_for(variant, capability):
    """Compiles one variant and measures its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = _types_of(variant.kernel, variant.constants.get("DTYPE"))
    source = ASTSource(fn=variant.kernel, signature=types, constexprs=variant.constants)
    options = {"enable_fp_fusion": False, **variant.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _run(tools / "nvdisasm", "-c", file.name)
    (registers, stack), ptx = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups(), compiled.asm["ptx"]
    return Row(
        name=variant.kernel.__name__.removesuffix("_kernel"),
        capability=capability,
        constants=" ".join(f"{name}={value}" for name, value in variant.constants.items()),
        registers=int(registers),
        stack=int(stack),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared=compiled.metadata.shared,
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]+\*/ ", code, re.MULTILINE)),
        barriers=len(re.findall(r"\bBAR\.", code)),
        vector_loads=len(re.findall(r"ld\.global[.\w]*\.v[248]\.", ptx)),
        flushes=ptx.count(".ftz"),
        contractions=len(re.findall(r"\bfma\.", ptx)) + len(re.findall(r"\bmad\.\w*\.?f", ptx)),
        narrow_offsets=count_narrow_offsets(compiled.asm["ttir"], variant.constants.get("DTYPE")),
    )


def count_narrow_offsets(ttir, dtype):
    """How often a 32-bit offset is added to a pointer to weights; past 2**31 elements it would be wrong.

    Weights of float32 are left out, because results have their type: the code is the same for all.
    """
    name = {"fp16": "f16", "bf16": "bf16", "fp64": "f64"}.get(str(dtype))
    return len(re.findall(rf"tt\.addptr .*!tt\.ptr<{name}>.*i32\b", ttir)) if name else 0


def _run(tool, *arguments):
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True, text=True).stdout


def table(rows):
    """The rows as aligned text."""
    lines = [Row._fields, *([str(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(Row._fields))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def faults(rows):
    """One line per kernel that must not ship."""
    for row in rows:
        which = f"{row.name} sm_{row.capability} {row.constants}"
        contracts = row.contractions and row.name not in MAY_CONTRACT
        flushes = row.flushes and row.name not in MAY_FLUSH
        if row.spills or row.stack or flushes or contracts:
            yield f"{which}: {row}"
        if row.name in VECTORS and row.vector_loads == 0 and "DENSE=False" not in row.constants:
            yield f"{which}: no vector loads"
        instructions, barriers = MOST.get(row.name, (math.inf, math.inf))
        if row.instructions > instructions or row.barriers > barriers:
            yield f"{which}: {row.instructions} instructions, {row.barriers} barriers"


def main(capabilities, choose):
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored: this compiles")
    chosen = choose(variants())
    rows = [compile_for(variant, capability) for capability in capabilities for variant in chosen]
    print(table(rows))
    found = list(faults(rows))
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument != "--sample"]
    sys.exit(main(numbers or CAPABILITIES, sample if "--sample" in sys.argv else list))
