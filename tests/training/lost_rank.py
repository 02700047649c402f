"""One rank of test_parallel: the command line, in which rank 1 is lost in the second epoch.

python -m tests.ranks PROCESSES tests.training.lost_rank HOW [argument ...]
"""

import os
import signal
import time

import torch
import torch._dynamo

from tests.training.training_runs import small_digits
from weight_evolution.training import cli
from weight_evolution.training.errors import UserError
from weight_evolution.training.trainer import Trainer

DIGITS = small_digits()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(25)
    os._exit(0)


def refuse():
    raise UserError("these images cannot be read")


def fail():
    raise RuntimeError("a fault of the network's own")


def main(how, *arguments):
    """``how``: the name of a function here."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "tests", "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    torch.set_num_threads(1)
    cli.load_data = lambda *_: DIGITS
    train_on = Trainer._train_on
    if os.environ["RANK"] == "1":
        Trainer._train_on = lambda trainer, *rest: globals()[how]() if trainer.epoch else train_on(trainer, *rest)
    status = cli.main(list(arguments))
    if status:
        raise SystemExit(status)
