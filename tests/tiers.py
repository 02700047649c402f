"""The two tiers of the tests: what a plain run leaves out, for ``--all`` to run.

A plain run leaves out the tests marked ``slow``, most cases of what Triton's interpreter runs, which takes a hundred
times as long as the other backends, and most cases of a test marked ``sampled``. Nothing is left out with ``--all``, of
what is named (a test's id, ``-k`` and ``-m`` other than "not ..."), and where there is a GPU.
"""

import torch

CASES = 2
"""Of one test function with the backend "triton", which the interpreter runs."""
INTERPRETED = {
    "test_interpreted.py",
    "test_asynchronous_interpreted.py",
    "test_adamw_interpreted.py",
    "test_reactivation_interpreted.py",
}
"""Files that run in the interpreter as a whole, of which one case of a function; elsewhere ``backend`` says so."""


def deselects(config):
    """Whether a run with these options is a plain one."""
    expressions = (config.option.keyword, config.option.markexpr)
    named = any(expression and not expression.startswith("not ") for expression in expressions)
    named = named or any("::" in argument for argument in config.args)
    return not (config.option.all or named or torch.cuda.is_available())


def left_out(items):
    """The items that a plain run leaves out.

    Of each function that is sampled some items stay, the same in every run; see `spread`. The functions of a file
    together show what two cases of one cannot: every dtype, every layout.
    """
    out = [item for item in items if item.get_closest_marker("slow")]
    functions = {}
    for item in items:
        if item not in out and (most := most_of(item)):
            functions.setdefault((item.path, item.originalname, most), []).append(item)
    seen = {}
    for (path, _, most), function in functions.items():
        kept = spread([parameters(item) for item in function], most, seen.setdefault((path, most), set()))
        out += [item for place, item in enumerate(function) if place not in kept]
    return out


def most_of(item):
    """How many items of its function a plain run takes; None: all."""
    if item.path.name in INTERPRETED:
        return 1
    if parameters(item).get("backend") == "triton":
        return CASES
    marker = item.get_closest_marker("sampled")
    return marker.args[0] if marker else None


def parameters(item):
    """Name -> value."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def spread(cases, most, seen=None):
    """Places of ``most`` of the cases that show as many values of every parameter as they can.

    Again and again the one with the most values that no chosen case has; of several such the one with the most that are
    not in ``seen``, then the one that is farthest from those that were chosen. So four cases of four dtypes and four
    layouts show all eight.

    Args:
        cases: for each case its parameters: name -> value.
        most: how many to choose.
        seen: values that other functions show, as (name, repr); those of the chosen cases are added.
    """
    seen = set() if seen is None else seen
    left = {place: {(name, repr(value)) for name, value in case.items()} for place, case in enumerate(cases)}
    chosen, shown = [], set()
    while left and len(chosen) < most:
        best = max(left, key=lambda p: (len(left[p] - shown), len(left[p] - seen), distance(p, chosen), -p))
        chosen.append(best)
        shown |= left[best]
        seen |= left.pop(best)
    return sorted(chosen)


def distance(place, others):
    """To the nearest."""
    return min((abs(place - other) for other in others), default=0)
