"""One rank of test_networks: the command line on a tenth of the digits, as torchrun would start it."""

import os

import torch
import torch._dynamo

from tests.training.training_runs import small_digits
from weight_evolution.training import cli


def main(*arguments: str) -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "tests"
    torch.set_num_threads(1)
    cli.load_data = lambda *_: small_digits()
    assert cli.main(list(arguments)) == 0
