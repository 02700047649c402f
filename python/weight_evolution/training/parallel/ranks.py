"""What a process does of the training of a network; one that is alone does all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from ..config import TrainingConfig
    from ..data import Dataset

T = TypeVar("T")


class Ranks:
    """The processes that train a network together; here one process, to which the methods do nothing."""

    mode: ClassVar[str | None] = None
    """What ``--parallel`` calls it."""
    rank = 0
    count = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and says what is said."""
        return self.rank == 0

    @property
    def described(self) -> dict[str, Any]:
        """Entries of results.json."""
        return {}

    def check(self, config: TrainingConfig, dataset: Dataset) -> None:
        """Raises UserError if the ranks cannot train that."""

    def place(self, model: nn.Module) -> nn.Module:
        """What is to be trained in place of a network, with the network's own parameters; before its optimizer is
        made.
        """
        return model

    def spread(self, model: nn.Module) -> None:
        """Give each rank what it is to have of a network that is not trained, but read and written."""

    def part(self, count: int) -> slice:
        """Which of so many images of a batch are this rank's."""
        return slice(0, count)

    def weight(self, count: int) -> float:
        """Of this rank's mean over its `part`, so that the mean over the ranks is that over the whole batch."""
        return 1.0

    def test_parts(self, count: int, size: int) -> list[slice]:
        """This rank's of so many test images, in batches of at most ``size``; as many on each rank."""
        return [slice(start, start + size) for start in range(0, count, size)]

    def randomness(self) -> tuple[str | int, ...]:
        """What a seed of this rank's own draws, of dropout, has more than the run's."""
        return ()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the first one's buffers: BatchNorm's statistics, which each has of its own images."""

    def on_first(self, work: Callable[[], T]) -> T:
        """What the first rank's ``work`` returns, on every rank; what it raises, all raise."""
        return work()

    def whole_model(self, model: nn.Module) -> nn.Module | None:
        """The network with whole parameters, to be read only; None on a rank that need not look at it."""
        return model

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state with whole tensors for a file; on the first rank only, if parameters are spread over the ranks."""
        return state

    def load(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Load the whole parameters and buffers into a placed network."""
        model.load_state_dict(state)

    def load_optimizer(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Load a whole state into the optimizer of a placed network."""
        optimizer.load_state_dict(dict(state))


ALONE = Ranks()
