"""Sums of absolute activations by channel."""

from ..operator import Operator

add_channel_activity_ = Operator(
    "add_channel_activity_(Tensor(a!) sums, Tensor activation, int dim, bool overwrite) -> ()",
    [object, object, int, bool],
    {"torch": "reference", "native": "native", "triton": "triton"},
    __package__,
)
