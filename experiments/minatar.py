"""Reinforcement learning: DQN on a game of MinAtar at a high replay ratio, with and without methods that revive units.

    python -m experiments.minatar --game breakout --minutes 60    # again, to go on where it ended
    python -m experiments.minatar --game breakout --table         # what is there so far

All methods and seeds are trained as one stack (`experiments.stacked`), until the time is over or the steps are done.
After every 1,000 steps each agent's part is a line of the output file, and all of the training is in the file beside it
(``.pt``), from which the same command goes on. Two processes with seeds and a file each use two cores; ``--table``
takes several files. MinAtar is not installed by default: ``pip install
'.[experiments]'``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.journal import Journal, all_results, open_journals
from experiments.minatar_settings import ARMS, GAMES, Part, Recipe
from experiments.minatar_tables import table
from experiments.minatar_training import Training
from weight_evolution.training import UserError
from weight_evolution.training.arguments import non_negative_int, positive_float, positive_int

_STEPS = 100_000
_QUICK = {"warm_up": 10, "part": 20, "target_period": 20, "epsilon_steps": 40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment, or print its table; returns the exit status."""
    given = _parser().parse_args(arguments)
    recipe = Recipe(game=given.game, updates=given.updates, lr=given.lr, **(_QUICK if given.quick else {}))
    outputs = given.output or [Path(f"minatar-{given.game}.jsonl")]
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        journals = open_journals(outputs, recipe, Part, only_read=given.table)
        if not given.table:
            training = Training(recipe, [(arm, seed) for arm in given.arms for seed in given.seeds])
            train(training, journals[0], outputs[0].with_suffix(".pt"), _steps(given), given.minutes)
        results = all_results(journals)
        print(table(recipe, results, given.steps if given.table else None))
    except UserError as error:
        print(f"minatar.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def train(training: Training, journal: Journal[Part], saved: Path, steps: int, minutes: float | None) -> None:
    """Until there are so many steps, or the time is over; from where ``saved`` ends, if it is there."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    if saved.exists():
        training.load(saved)
    with tqdm(total=steps, initial=training.steps, unit="step", disable=None) as bar:
        while training.steps < steps:
            training.step()
            bar.update()
            if training.at_end_of_part:
                for part, result in training.finish_part().items():
                    if part not in journal.results:
                        journal.write(part, result)
                training.save(saved)
            if deadline is not None and time.monotonic() > deadline:
                training.save(saved)
                print(f"the time is over after {training.steps:,} steps; the same command goes on", flush=True)
                return


def _steps(given: argparse.Namespace) -> int:
    default = 3 * _QUICK["part"] if given.quick else _STEPS
    return int(given.steps or default)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--game", choices=GAMES, default="breakout", metavar="NAME", help=", ".join(GAMES))
    parser.add_argument("--output", type=Path, nargs="+", metavar="FILE", help="default: minatar-GAME.jsonl")
    parser.add_argument("--minutes", type=positive_float, help="end after so many; default: when all is done")
    parser.add_argument("--steps", type=positive_int, metavar="N", help=f"of each agent; default {_STEPS:,}")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there, at --steps")
    parser.add_argument("--quick", action="store_true", help="60 steps: only to see it work")
    parser.add_argument("--seeds", type=non_negative_int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--arms", choices=tuple(ARMS), nargs="+", default=list(ARMS), metavar="METHOD")
    parser.add_argument(
        "--updates", type=positive_int, default=Recipe.updates, metavar="N", help="after each step; default %(default)s"
    )
    parser.add_argument("--lr", type=positive_float, default=Recipe.lr, help="of all methods; default %(default)s")
    parser.add_argument("--threads", type=positive_int, metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
