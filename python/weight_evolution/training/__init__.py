"""The trainer behind the command ``weight-evolution``: models, data sets, methods, checkpoints, logs and the demo.

Nothing here is imported by ``import weight_evolution``; scikit-learn, matplotlib, tqdm, torchvision, timm and
TensorBoard are imported only where they are used.
"""

from .compacting import load_compact
from .errors import UserError

__all__ = ["UserError", "load_compact"]
