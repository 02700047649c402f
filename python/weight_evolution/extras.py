"""How to install what an extra of this package brings; without PyTorch."""


def install(extra: str) -> str:
    """The command that brings an extra, as messages say it: the package is installed from its source."""
    return f"pip install '.[{extra}]' in a clone of weight-evolution"
