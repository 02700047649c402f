"""Deliberate faults, one line each, and the tests that must notice them."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace `old` (which occurs once in `path`) by `new`; then `tests` must fail."""

    path: str
    old: str
    new: str
    tests: str


_WK = "we_kernels/"
_REFERENCE = _WK + "evolution/reference/"
_KERNELS = "tests/kernels/test_reference.py tests/kernels/test_degenerate.py -k 'not native and not triton'"
_EVOLUTION = "tests/evolution -k 'not triton'"
_TRITON = "tests/kernels/test_properties.py tests/kernels/test_degenerate.py -k triton"
_NATIVE = "tests/kernels/test_properties.py tests/kernels/test_degenerate.py -k native"
_METHOD = "python/weight_evolution/grafting/"
_GRAFTING = "tests/grafting --ignore tests/grafting/test_ring.py -k 'not triton and not native'"
_SHARDED = "tests/sharding/test_sharded_grafting.py"
_RING = "tests/grafting/test_ring.py -k 'one_process and 3 or lost'"
_LOW_RANK = _WK + "low_rank/"
_PROJECTION = "tests/kernels/test_low_rank.py -k 'not reference and not settings'"
_PRETENDED = "tests/triton/test_pretended.py "
_GRAPH = _PRETENDED + "-k graph_replays"
_SECOND = _PRETENDED + "-k second_call"
_WE = "python/weight_evolution/"
_LOW_RANK_METHOD, _SHARDED_LOW_RANK = _WE + "low_rank/", "tests/sharding/test_low_rank.py"
_CPU = "csrc/cpu/"
_GPU = _WK + "evolution/triton/"
_CUDA = "csrc/cuda/"
_EMULATED = "tests/cuda/test_emulation.py"
_OVERLAP = "tests/kernels/test_overlap.py -k '(loops or tile or known or overflow) and not triton'"
_OVERLAP_TRITON = "tests/kernels/test_overlap.py -k '(loops or known) and triton'"
_ASYNCHRONOUS = "python/weight_evolution/asynchronous/"
_UPDATE, _ASYNCHRONOUS_SGD = "tests/asynchronous/test_update.py", "tests/asynchronous/test_sgd.py"

_SUBSETS = "tests/kernels/test_asynchronous.py -k 'not native and not triton'"
_SUBSETS_NATIVE = "tests/kernels/test_asynchronous.py tests/native/test_asynchronous_bits.py -k native"
_SUBSETS_TRITON = (
    "tests/kernels/test_asynchronous.py tests/triton/test_asynchronous_interpreted.py "
    "-k 'triton and (definition or halves or snapshot or rounds or finite)'"
)
_ACTIVITY = "tests/kernels/test_activity.py -k 'not native and not triton'"
_ACTIVITY_NATIVE = "tests/kernels/test_activity.py tests/native/test_same_bits.py -k 'activity and native'"
_ACTIVITY_TRITON = "tests/kernels/test_activity.py tests/triton/test_interpreted.py -k 'triton and activ'"
_UNITS_NATIVE = "tests/kernels/test_reactivation.py tests/native/test_reactivation_bits.py -k native"
_ADAMW = "tests/kernels/test_adamw.py -k 'not native and not triton'"
_ADAMW_NATIVE = "tests/kernels/test_adamw.py -k native"
_ADAMW_TRITON = "tests/triton/test_adamw_interpreted.py -k 'rounds or vector'"
_UNIT_ADAMW = "tests/reactivation/test_unit_adamw.py"
_SHARDED_REACTIVATION = "tests/sharding/test_sharded_reactivation.py"
_REVIVED_TRITON = "tests/kernels/test_reactivation.py -k 'triton and (loops and float32 or step_on)'"
_REVIVED_MEANS_TRITON = "tests/kernels/test_reactivation.py -k 'triton and means'"
_DORMANT_TRITON = "tests/kernels/test_reactivation.py -k 'triton and (dormant_units or parents)'"
_PARALLEL = "python/weight_evolution/training/parallel/"
_RANKS = "tests/training/test_parallel.py -k 'not four and not torchrun'"
_BLENDS = "tests/kernels/test_grafting.py -k 'not native and not triton'"
_NATIVE_BLENDS = "tests/kernels/test_grafting.py -k native"
_TRITON_BLENDS = "tests/kernels/test_grafting.py -k triton"

MUTANTS = [
    Mutant(_WK + "activity/reference.py", "sum(1 if dim == 0 else 0", "sum(0 if dim == 0 else 1", _ACTIVITY),
    Mutant(_WK + "activity/api.py", "narrow(dim, offset,", "narrow(dim, 0,", _ACTIVITY),
    Mutant(_WK + "activity/api.py", "            sums.zero_()", "            pass", _ACTIVITY),
    Mutant(
        _WK + "activity/geometry.py", "merged[-1][1] == size * step", "merged[-1][1] >= size * step", _ACTIVITY_NATIVE
    ),
    Mutant(_WK + "activity/geometry.py", "channel_stride == size < NARROW", "channel_stride >= size", _ACTIVITY_NATIVE),
    Mutant(_CPU + "activity.cpp", "r < activation.run; ++r", "r < 1; ++r", _ACTIVITY_NATIVE),
    Mutant(
        _CPU + "simd_activity.h",
        "Walk walk(activation.positions, part.first)",
        "Walk walk(activation.positions)",
        _ACTIVITY_NATIVE,
    ),
    Mutant(_CPU + "simd_activity.h", "begin = item % runs * part.run_length", "begin = 0", _ACTIVITY_NATIVE),
    Mutant(
        _WK + "activity/triton/activity.py", "outer = outer // sizes[1]", "outer = outer // sizes[0]", _ACTIVITY_TRITON
    ),
    Mutant(
        _WK + "activity/triton/activity.py",
        "(number // run * channels + channel)",
        "(number // run + channel)",
        _ACTIVITY_TRITON,
    ),
    Mutant(_WK + "activity/triton/launches.py", "            overwrite = False", "            pass", _ACTIVITY_TRITON),
    Mutant(_WE + "measures/unit_sums.py", "or self.calls == 0", "", "tests/measures/test_unit_activity.py -k clear"),
    Mutant(
        _WE + "measures/unit_activity.py",
        "                dist.all_reduce(flat, group=group)",
        "                pass",
        "tests/measures/test_unit_activity.py -k ranks",
    ),
    Mutant(_REFERENCE + "importance.py", ", layer.channels)", ", 1)", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "below = importance < threshold", "below = importance <= threshold", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "(importance == 0) & torch", "(importance < 0) & torch", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "importance <= ratio * peak", "importance < ratio * peak", _KERNELS),
    Mutant(
        _REFERENCE + "matching.py",
        "counters[g] >= rule.starvation_limit",
        "counters[g] > rule.starvation_limit",
        _KERNELS,
    ),
    Mutant(_REFERENCE + "matching.py", "low, counters[g] = 1, 0", "low = 1", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "min(below, low)", "low", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "(k < dominant)", "(k < size)", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "descending=True, stable=True", "descending=True", _KERNELS),
    Mutant(_REFERENCE + "matching.py", "math.floor(total * rate)", "math.ceil(total * rate)", _KERNELS),
    Mutant(_REFERENCE + "crossover.py", "a * s + (1 - a) * l)", "a * l + (1 - a) * s)", _KERNELS),
    Mutant(_REFERENCE + "crossover.py", "torch.where(q == s,", "torch.where(q.abs() == s.abs(),", _KERNELS),
    Mutant(_REFERENCE + "crossover.py", "torch.where(new.isfinite(), new,", "torch.where(True, new,", _KERNELS),
    Mutant(_WK + "runtime/layout.py", "int(height == 1)", "int(dims[-1:] == [])", _KERNELS),
    Mutant(
        _WK + "evolution/operators.py",
        "check_donors(donor, bank.layout.segments)",
        "pass",
        "tests/kernels/test_bad_input.py",
    ),
    Mutant(_WE + "evolution/device_step.py", "max(convs, 1) / divisor", "max(convs, 1)", _EVOLUTION),
    Mutant(_WE + "evolution/method.py", "            if strict:\n", "            if False:\n", _EVOLUTION),
    Mutant(_WE + "evolution/method.py", "epoch >= epochs - 1", "epoch >= epochs", _EVOLUTION),
    Mutant(_WE + "evolution/device_step.py", 'kind in ("conv", "linear")', 'kind != "linear"', _EVOLUTION),
    Mutant(_WE + "model/outputs.py", "isinstance(module, _BatchNorm) or next", "next", _EVOLUTION),
    Mutant(_WE + "model/structure.py", "and self._trained == self._trained_now()", "", _EVOLUTION),
    Mutant(_WE + "evolution/inferior_shifts.py", "(donor[self._filter.clamp(min=0)] >= 0)", "(donor >= 0)", _EVOLUTION),
    Mutant(_WE + "evolution/method.py", "            report.raise_pending()", "            pass", _EVOLUTION),
    Mutant(_WE + "evolution/linear_biases.py", "(a * bias + (1 - a)", "(a * bias + a", _EVOLUTION),
    Mutant(
        _WE + "evolution/partial_filters.py",
        "torch.where(blended.isfinite(), blended, own)",
        "blended",
        "tests/evolution/test_partial_filters.py",
    ),
    Mutant(_WE + "evolution/method.py", "self._unchecked[0].arrived", "True", _PRETENDED + "-k does_not_wait"),
    Mutant(
        _WE + "evolution/report.py", "        if self.pending:\n", "        if False:\n", _PRETENDED + "-k not_finite"
    ),
    Mutant(_WE + "evolution/device_step.py", "increment_version(changed)", "pass", _GRAPH),
    Mutant(
        _WE + "evolution/device_step.py",
        "return self._recording.outcome.copy()",
        "return self._recording.outcome",
        _GRAPH,
    ),
    Mutant(
        _WE + "evolution/device_step.py",
        "self._recording.made_for != memory",
        "False",
        _PRETENDED + "-k recorded_again",
    ),
    Mutant(_WK + "runtime/transfer.py", 'pin_memory=target.type == "cuda"', "pin_memory=False", _SECOND),
    Mutant(_WK + "runtime/transfer.py", "else torch.cuda.device(device)", "else _HERE", "tests/triton/test_launch.py"),
    Mutant(_WE + "model/targets.py", "return weight, 1\n", "return weight, 0\n", "tests/model/test_parameters.py"),
    Mutant(_GPU + "importance.py", "channels.to(ACC), ACC)", "channels.to(ACC) + 1, ACC)", _TRITON),
    Mutant(_GPU + "threshold.py", "axis=0) <= rest", "axis=0) < rest", _TRITON),
    Mutant(_GPU + "rank.py", "[None, :] < row[:, None]", "[None, :] > row[:, None]", _TRITON),
    Mutant(_GPU + "starvation.py", "(remainder == 0)", "(remainder == 1)", _TRITON),
    Mutant(_GPU + "crossover.py", "new = a * s + (1.0 - a) * l\n", "new = a * l + (1.0 - a) * s\n", _TRITON),
    Mutant(_CPU + "matching.cpp", "below += keys[f] < bar", "below += keys[f] <= bar", _NATIVE),
    Mutant(_CPU + "matching.cpp", "std::nth_element(candidates, candidates + rank, candidates + count);", "", _NATIVE),
    Mutant(_CPU + "ranking.cpp", "static_cast<Item>(0x7fffffff - key)", "static_cast<Item>(key)", _NATIVE),
    Mutant(_CPU + "simd_crossover.h", "take = bits > largest_bits", "take = bits >= largest_bits", _NATIVE),
    Mutant(_CPU + "simd_crossover.h", "return a * smallest + (1 - a) * largest;", "return largest;", _NATIVE),
    Mutant(
        _METHOD + "coefficients.py", "own.double() - neighbour.double()", "neighbour.double() - own.double()", _GRAFTING
    ),
    Mutant(_METHOD + "coefficients.py", "own / total, 0.5)", "own / total, 1.0)", _GRAFTING),
    Mutant(
        _METHOD + "parts.py",
        "items.append(Part(name, module, attribute, conv))",
        "items.append(Part(name, module, attribute, 0))",
        _GRAFTING,
    ),
    Mutant(
        _METHOD + "filter_grafting.py",
        "one, before[i - 1], rule)",
        "one, before[i - len(before) + 1], rule)",
        _GRAFTING,
    ),
    Mutant(
        _METHOD + "ring.py",
        "self.members[network - 1][position]",
        "self.members[(network + 1) % len(self.members)][position]",
        _RING,
    ),
    Mutant(_METHOD + "ring.py", "first, size = i + 1, 0", "first, size = i, 0", _RING),
    Mutant(
        _METHOD + "filter_grafting.py",
        'counts = exchange.agree(blend, "agreeing that all have blended")',
        "counts = [blend()] * exchange.size",
        _RING,
    ),
    Mutant(_METHOD + "sharded_network.py", " if self._convs[name].first_copy}", "}", _SHARDED),
    Mutant(_METHOD + "sharded_network.py", "every[exchange.own]", "[one._ends() for one in here]", _SHARDED),
    Mutant(
        _METHOD + "side_by_side.py", "(networks, coefficients, banks", "(networks, coefficients[::-1], banks", _SHARDED
    ),
    Mutant(_METHOD + "side_by_side.py", "    reshard(model)\n", "", _SHARDED),
    Mutant(_WE + "sharding/rows.py", "first += before if kind.dim == dim else 0", "first += 0", _SHARDED),
    Mutant("python/weight_evolution/grafting/distillation.py", "-(temperature**2) * ", "-temperature * ", _GRAFTING),
    Mutant(_WE + "measures/invalid_filters.py", "(norms < threshold)", "(norms <= threshold)", "tests/measures"),
    Mutant(
        "python/weight_evolution/training/networks.py",
        "self.epoch < self.config.epochs and",
        "",
        "tests/training/test_networks.py -k 'not torchrun'",
    ),
    Mutant(_PARALLEL + "replicas.py", "len(range(count)[self.part(count)]) * self.count / count", "1.0", _RANKS),
    Mutant(_PARALLEL + "replicas.py", '("rank", self.rank) if self.rank else ()', "()", _RANKS),
    Mutant(_PARALLEL + "started.py", "any(mark in text for mark in _OF_GLOO)", "False", _RANKS),
    Mutant("python/weight_evolution/training/ema.py", "    reshard(model)\n", "", _RANKS),
    Mutant(
        "python/weight_evolution/training/data/dataset.py",
        "dataset.augmentation(batch, draws, len(whole), part)",
        "dataset.augmentation(batch, draws)",
        _RANKS,
    ),
    Mutant(
        "python/weight_evolution/training/trainer.py",
        "            self.ranks.share_buffers(self.model)\n",
        "",
        _RANKS,
    ),
    Mutant(_WK + "overlap/reference.py", "/ (2 if i == j else 1)", "", _OVERLAP),
    Mutant(_WK + "overlap/reference.py", "(j, cosine.amax(0))", "(j, cosine.amax(1))", _OVERLAP),
    Mutant(
        _WK + "overlap/triton/overlap.py",
        "row[:, None] < column[None, :]",
        "row[:, None] <= column[None, :]",
        _OVERLAP_TRITON,
    ),
    Mutant(_WK + "overlap/triton/overlap.py", "tl.maximum(peaks,", "tl.minimum(peaks,", _OVERLAP_TRITON),
    Mutant(_ASYNCHRONOUS + "update.py", "wk.restore_unselected_(bank, begun.selected, begun.buffer)", "pass", _UPDATE),
    Mutant(_ASYNCHRONOUS + "update.py", 'skipped=getattr(optimizer, "found_inf", None)', "", _UPDATE),
    Mutant(_ASYNCHRONOUS + "update.py", " or layout != self._layout", "", _UPDATE),
    Mutant(_ASYNCHRONOUS + "subsets.py", 'self.step.fill_(state["step"])', "pass", _UPDATE),
    Mutant(_ASYNCHRONOUS + "targets.py", "math.floor(rate * size)", "round(rate * size)", _UPDATE),
    Mutant(_ASYNCHRONOUS + "sgd.py", "else lr / share", "else lr * share", _ASYNCHRONOUS_SGD),
    Mutant(_ASYNCHRONOUS + "sgd.py", "self._subsets.check_state(subsets)", "pass", _ASYNCHRONOUS_SGD),
    Mutant(
        _WE + "reactivation/unit_adamw.py",
        "local_part(state[key]).masked_fill_(fresh.view(shape), 0)",
        "pass",
        _UNIT_ADAMW,
    ),
    Mutant(
        _WE + "reactivation/unit_adamw.py",
        "return columns.to(device=param.device, dtype=torch.float32)",
        "return columns.to(device=param.device, dtype=param.dtype)",
        _UNIT_ADAMW,
    ),
    Mutant(_WE + "reactivation/reset_vectors.py", "of_groups[rows // ", "of_groups[0 * rows // ", _UNIT_ADAMW),
    Mutant(_WE + "reactivation/unit_part.py", "(self._held.first + rows) * d1", "rows * d1", _SHARDED_REACTIVATION),
    Mutant(
        _WE + "reactivation/unit_part.py",
        'torch.arange(d0, device="cpu")[self._held.range]',
        'torch.arange(self._held.number, device="cpu")',
        _SHARDED_REACTIVATION,
    ),
    Mutant(
        _WE + "reactivation/sharded_step.py",
        "of_ranks[0] if prepared.parts[i].is_whole else of_ranks.sum(0)",
        "of_ranks[0]",
        _SHARDED_REACTIVATION,
    ),
    Mutant(_WE + "reactivation/sharded_step.py", "self.selection.clone()", "self.selection", _SHARDED_REACTIVATION),
    Mutant(_WE + "model/optimizer_state.py", '{"step", "row_reset", "column_reset"}', '{"step"}', _UNIT_ADAMW),
    Mutant(_WK + "adamw/reference.py", "max(step - reset, 1.0)", "step - reset + 1", _ADAMW),
    Mutant(
        _WK + "adamw/reference.py", "torch.minimum(of_rows, of_columns)", "torch.maximum(of_rows, of_columns)", _ADAMW
    ),
    Mutant(_CPU + "adamw.cpp", "std::pow(rule.beta1, age)", "std::pow(rule.beta2, age)", _ADAMW_NATIVE),
    Mutant(_CPU + "simd_adamw.h", "if (roots_ != nullptr) {", "if (false) {", _ADAMW_NATIVE),
    Mutant(_CPU + "simd_adamw.h", "row_.number / per_group_", "0", _ADAMW_NATIVE),
    Mutant(_CPU + "simd_adamw.h", "eps_(scalar<T>(rule.eps))", "eps_(wide(rule.eps))", _ADAMW_NATIVE),
    Mutant(_WK + "adamw/triton/adamw.py", "_quotient(row, field + BY_PER_GROUP) * channels", "0", _ADAMW_TRITON),
    Mutant(
        _WK + "adamw/triton/adamw.py", "-(-(1 << 31 + shift) // divisor)", "(1 << 31 + shift) // divisor", _ADAMW_TRITON
    ),
    Mutant(_WK + "adamw/triton/adamw.py", "tl.where(from_mean, weight, weight - 1)", "weight", _ADAMW_TRITON),
    Mutant(_WK + "asynchronous/reference.py", "expected.round().clamp(min=1)", "expected.round()", _SUBSETS),
    Mutant(_WK + "asynchronous/reference.py", "expected.round()", "(expected + 0.5).floor()", _SUBSETS),
    Mutant(_WK + "asynchronous/reference.py", "target[kept] = source[kept]", "target[...] = source", _SUBSETS),
    Mutant(_WK + "asynchronous/reference.py", "if tensors.first_steps[i]:", "if False:", _SUBSETS),
    Mutant(_WK + "runtime/parameters.py", "grads[i] = grads[i].contiguous()", "pass", _SUBSETS_NATIVE),
    Mutant(_CPU + "asynchronous.cpp", "rest == 0.5 && whole % 2 != 0", "rest == 0.5", _SUBSETS_NATIVE),
    Mutant(_CPU + "philox.h", "k1 += 0xBB67AE85;", "", _SUBSETS_NATIVE),
    Mutant(_CPU + "simd_rounding.h", "at < body ? body - at", "true ? body - at", _SUBSETS_NATIVE),
    Mutant(_CPU + "simd_sgd.h", "share(scalar<T>(1 - rule.dampening))", "share(scalar<T>(1))", _SUBSETS_NATIVE),
    Mutant(_CPU + "simd_sgd.h", "if (selected[first + row] == 0) continue;", "", _SUBSETS_NATIVE),
    Mutant(
        _WK + "asynchronous/triton/select.py",
        "(index[None, :] < row[:, None])",
        "(index[None, :] <= row[:, None])",
        _SUBSETS_TRITON,
    ),
    Mutant(
        _WK + "asynchronous/triton/snapshot.py",
        "mask=inside, other=1) == 0)",
        "mask=inside, other=1) >= 0)",
        _SUBSETS_TRITON,
    ),
    Mutant(_WK + "asynchronous/triton/sgd.py", "tl.where(moves, new, old)", "new", _SUBSETS_TRITON),
    Mutant(_CPU + "reactivation.cpp", "alive[i] = anew ? 0 : 1;", "alive[i] = 1;", _UNITS_NATIVE),
    Mutant(_CPU + "reactivation.cpp", "stream | kStream", "stream", _UNITS_NATIVE),
    Mutant(_CPU + "reactivation.cpp", "columns_.kind == kZero,", "true,", _UNITS_NATIVE),
    Mutant(_CPU + "reactivation.cpp", "others_->count() == 0 &&", "false &&", _UNITS_NATIVE),
    Mutant(_CPU + "reactivation.cpp", "if (rows.hits + columns.hits > 0)", "if (true)", _UNITS_NATIVE),
    Mutant(_CPU + "reactivation.cpp", "std::isfinite(mean) && ", "", _UNITS_NATIVE),
    Mutant(_CPU + "reactivation.cpp", "depth < sizes.size()", "depth < 2", _UNITS_NATIVE),
    Mutant(_CPU + "simd_units.h", "(bits & Form::kInfinity) != Form::kInfinity", "~Bits<T>{}", _UNITS_NATIVE),
    Mutant(_CPU + "simd_units.h", "keep &= mask(kept + at)", "keep &= ~Bits<T>{}", _UNITS_NATIVE),
    Mutant(_CPU + "simd_units.h", "(!kMagnitudes && value - value != 0)", "false", _UNITS_NATIVE),
    Mutant(_CPU + "simd_units.h", "if (!writes.columns_first) continue;", "continue;", _UNITS_NATIVE),
    Mutant(_CPU + "simd_units.h", "odd = even + 1", "odd = even", _UNITS_NATIVE),
    Mutant(_WK + "reactivation/triton/dormant.py", "(own <= bar)", "(own < bar)", _DORMANT_TRITON),
    Mutant(_WK + "reactivation/triton/dormant.py", "found = found | tl.load(", "found = tl.load(", _DORMANT_TRITON),
    Mutant(_WK + "reactivation/triton/elements.py", "above = n >= below", "above = n > below", _REVIVED_TRITON),
    Mutant(
        _WK + "reactivation/triton/sums.py",
        "mask=unit >= 0, other=1) == 0)",
        "mask=unit >= 0, other=1) >= 0)",
        _REVIVED_TRITON,
    ),
    Mutant(_WK + "reactivation/triton/sums.py", "tl.where(written, 0.0, wide)", "wide", _REVIVED_MEANS_TRITON),
    Mutant(_WK + "reactivation/triton/sums.py", "tl.abs(bits - 0x800000)", "bits", _REVIVED_TRITON),
    Mutant(_WK + "reactivation/triton/write.py", "inside & (hidden == 0)", "inside", _REVIVED_TRITON),
    Mutant(
        _WK + "reactivation/triton/write.py", "(count == 0) & (value == _MEAN)", "count == 0", _REVIVED_MEANS_TRITON
    ),
    Mutant(_LOW_RANK + "subspace.py", "root = shift * ", "root = 0 * ", _PROJECTION),
    Mutant(_LOW_RANK + "subspace.py", "(_largest_outside(gram, q, unit, power) + error) / 2", "error / 2", _PROJECTION),
    Mutant(_LOW_RANK + "subspace.py", " & (kept * unit >= least)", "", _PROJECTION),
    Mutant(_LOW_RANK + "stack.py", "out[:, first, second] = below.mT", "pass", _PROJECTION),
    Mutant(_LOW_RANK + "stack.py", "coordinates.mul_(back), u.mT", "coordinates, u.mT", _PROJECTION),
    Mutant(_LOW_RANK + "parallel.py", "torch.set_num_threads(former)", "pass", _PROJECTION),
    Mutant(_LOW_RANK + "parallel.py", "inference), torch.no_grad():", "inference):", _PROJECTION),
    Mutant(_LOW_RANK + "parallel.py", "left -= work[order.pop(0)]", "order.pop(0)", _PROJECTION),
    Mutant(_LOW_RANK + "batch.py", "[i - start for i", "[i for i", _PROJECTION),
    Mutant(_LOW_RANK + "eigen.py", "good |= gram.dtype != batch.dtype", "pass", _PROJECTION),
    Mutant(_LOW_RANK_METHOD + "compact.py", "u * root, rows /", "u, rows /", "tests/low_rank/test_compact.py"),
    Mutant(
        _LOW_RANK_METHOD + "sharded_layer.py", "vectors[:, -self.rank :]", "vectors[:, : self.rank]", _SHARDED_LOW_RANK
    ),
    Mutant(
        _LOW_RANK_METHOD + "sharded_layer.py", "self._own(self.scale.double()) * matrix", "matrix", _SHARDED_LOW_RANK
    ),
    Mutant(_LOW_RANK_METHOD + "shards.py", "        self.take_([values])\n", "", _SHARDED_LOW_RANK),
    Mutant(_LOW_RANK_METHOD + "sharded_step.py", "before.isfinite().all()", "before.any()", _SHARDED_LOW_RANK),
    Mutant(_CUDA + "importance.cu", "sum / static_cast<Acc>(layer.channels)", "sum", _EMULATED),
    Mutant(_CUDA + "filters.cuh", "if (tail < elements) sum +=", "if (tail + 1 < elements) sum +=", _EMULATED),
    Mutant(_CUDA + "threshold.cu", "keys[i] < 0 || keys[i] > kLargestFinite", "keys[i] > kLargestFinite", _EMULATED),
    Mutant(_CUDA + "threshold.cu", "place < last ? place : last", "place", _EMULATED),
    Mutant(_CUDA + "rank.cu", "kWords + j < row", "kWords + j > row", _EMULATED),
    Mutant(_CUDA + "rank.cu", "    __syncthreads();\n    const int part", "    const int part", _EMULATED),
    Mutant(_CUDA + "starvation.cu", "here.count % limit == 0", "here.count % limit == 1", _EMULATED),
    Mutant(_CUDA + "starvation.cu", "counter < limit ? counter : limit - 1", "counter", _EMULATED),
    Mutant(_CUDA + "threads.cuh", "__syncthreads();  // before the next", "// before the next", _EMULATED),
    Mutant(_CUDA + "crossing.cuh", "magnitude_bits(own) < smallest", "magnitude_bits(own) <= smallest", _EMULATED),
    Mutant(_CUDA + "crossing.cuh", "if (has_nan) return;", "if (has_nan && false) return;", _EMULATED),
    Mutant(_CUDA + "crossover.cu", "if (source >= layer.filters) continue;", "", _EMULATED),
    Mutant(_CUDA + "crossing.cuh", "if (head_of(p, elements) != head) head = elements;", "", _EMULATED),
    Mutant(
        "csrc/bindings/cuda_device.h", "check_size(name, elements, expected);", "", "tests/cuda/test_cuda_bindings.py"
    ),
    Mutant(
        _WK + "runtime/transfer.py",
        "    if place.capturing:\n        _captured.add(owner)\n    return table",
        "    return table",
        _EMULATED,
    ),
    Mutant(_WK + "grafting/reference.py", "(x >= left[:, None])", "(x > left[:, None])", _BLENDS),
    Mutant(_WK + "grafting/reference.py", "before[k - 1]", "before[k]", _BLENDS),
    Mutant(_WK + "grafting/api.py", "        _check_separate(banks, names)\n", "        pass\n", _BLENDS),
    Mutant(_CPU + "simd_bins.h", "start_ = low_ - width_ / 2;", "start_ = low_ + width_;", _NATIVE_BLENDS),
    Mutant(_CPU + "simd_vectors.h", "return x - V{};", "return x + V{};", _NATIVE_BLENDS),
    Mutant(_CPU + "simd_blend.h", "neighbour[v] = own;", "static_cast<void>(own);", _NATIVE_BLENDS),
    Mutant(_WK + "grafting/triton/bins.py", "(edge <= bins) &", "(edge < bins) &", _TRITON_BLENDS),
    Mutant(_WK + "grafting/triton/blend.py", "        neighbour = own\n", "", _TRITON_BLENDS),
    Mutant(
        _WK + "operator.py", "            increment_version(tensors)", "            pass", "tests/kernels/test_ops.py"
    ),
    Mutant(_WK + "operator.py", "in _IN_PYTORCH else", "in () else", "tests/kernels/test_defaults.py -k inference"),
    Mutant(
        _WK + "bank.py", "        if seen != self._seen:", "        if self._seen is None:", "tests/kernels/test_ops.py"
    ),
]
