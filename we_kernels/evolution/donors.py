"""Whether donors can be crossed over."""

from __future__ import annotations

from torch import Tensor

from ..runtime.layout import Segments


def check_donors(donor: Tensor, segments: Segments) -> None:
    """Every donor is -1 or a row of its own layer that is not itself replaced. Waits for the device.

    Raises:
        ValueError: names the first filter that breaks this.
    """
    layer = segments.layer_of_filter(donor.device)
    size, start, _ = segments.table_on(donor.device)[layer].unbind(1)
    outside = (donor < -1) | (donor >= size)
    replaced_donor = donor[(start + donor.clamp(min=0)).clamp(max=segments.num_filters - 1)] >= 0
    bad = (outside | ((donor >= 0) & replaced_donor)).nonzero()
    if bad.numel() == 0:
        return
    index = int(bad[0])
    row, value, count = index - int(start[index]), int(donor[index]), int(size[index])
    where = f"donor[{index}] (row {row} of layer {int(layer[index])}) is {value}"
    if not -1 <= value < count:
        raise ValueError(f"{where}; it must be -1 or a row of that layer, 0 to {count - 1}")
    raise ValueError(f"{where}, a row that is itself replaced; a donor must keep its own weights")
