"""What the nodes of a traced graph do with the channels of a tensor, by the names of functions and modules."""

from __future__ import annotations

from torch import fx, nn
from torch._ops import OpOverload

NONLINEARITIES = {
    *("relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
    *("sigmoid", "logsigmoid", "log_sigmoid", "tanh", "hardsigmoid", "hardswish", "hardtanh", "hardshrink"),
    *("softshrink", "tanhshrink", "threshold", "clamp", "clamp_min", "clamp_max", "abs", "square", "sin", "exp"),
}
"""Functions of one tensor, element by element."""

NONLINEAR_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardshrink),
    *(nn.Softshrink, nn.Tanhshrink, nn.Threshold, nn.PReLU),
)

UNCHANGED = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("contiguous", "clone", "alias", "detach", "to", "float", "half", "bfloat16", "double", "neg", "_to_copy"),
}
"""Functions that leave every unit where it is."""

UNCHANGED_MODULES = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)

ARITHMETIC = {"add", "iadd", "sub", "isub", "rsub", "mul", "imul", "div", "truediv", "itruediv"}
"""Of a tensor and a number they are functions of one tensor."""

POOLS = {
    f"{kind}_pool{dims}d": dims for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for dims in (1, 2, 3)
}
"""Function -> number of spatial dimensions."""

POOL_MODULES = {getattr(nn, f"{kind}Pool{dims}d"): dims for kind in ("Max", "Avg", "LP", "AdaptiveMax", "AdaptiveAvg")
                for dims in (1, 2, 3)}  # fmt: skip
"""Class -> number of spatial dimensions."""

REDUCTIONS = {"mean", "sum", "amax", "amin"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
RESHAPES = {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"}

_ASKED = {"size", "dim", "stride", "is_floating_point", "sym_size", "_assert_tensor_metadata"}
_ATTRIBUTES = {"shape", "dtype", "device", "ndim"}


def function_name(node: fx.Node) -> str | None:
    """Of a function or method, in place or not; None for other nodes."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.op != "call_function":
        return None
    elif isinstance(node.target, OpOverload):
        name = node.target.overloadpacket.__name__
    else:
        name = getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def only_asks(node: fx.Node) -> bool:
    """Whether it reads what a tensor is, not its values."""
    name = function_name(node)
    return name in _ASKED or (name == "getattr" and node.args[1] in _ATTRIBUTES)


def is_batch_size(node: object) -> bool:
    """Whether it is the first size of some tensor: ``x.size(0)``, ``x.size()[0]``, ``x.shape[0]``."""
    if not isinstance(node, fx.Node):
        return False
    name, arguments = function_name(node), node.args[1:]
    if name in ("size", "sym_size"):
        return arguments == (0,)
    sizes = node.args[0] if node.args else None
    return name == "getitem" and arguments == (0,) and isinstance(sizes, fx.Node) and only_asks(sizes)
