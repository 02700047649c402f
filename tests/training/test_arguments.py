"""Dataclasses of options and the arguments that are made of them."""

import argparse
from dataclasses import dataclass

import pytest

from weight_evolution.training.arguments import add_options, fraction, option, options_of, positive_int


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    share: float = option(0.5, "of all", type=fraction)
    draws: int = option(3, flag="number_of_draws", type=positive_int, default=None)
    kind: str = option("a", choices=("a", "b"))
    on: bool = option(True, "off")
    loud: bool = option(False, "noise")
    epochs: int = 0


def parsed(*arguments, **others):
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=7)
    add_options(parser, Options, "my_")
    return options_of(Options, parser.parse_args(arguments), "my_", **others), parser


def test_defaults_are_the_fields_unless_the_command_line_has_another():
    assert parsed()[0] == Options(draws=None, epochs=7)
    assert (Options.share, Options().draws) == (0.5, 3)


def test_values_flags_and_names():
    arguments = ["--my-share", "0.25", "--number-of-draws", "2", "--my-kind", "b", "--no-my-on", "--my-loud"]
    assert parsed(*arguments)[0] == Options(0.25, 2, "b", False, True, 7)
    assert parsed(*arguments, share=1.0, epochs=1)[0] == Options(1.0, 2, "b", False, True, 1)


def test_help_shows_defaults():
    text = " ".join(parsed()[1].format_help().split())
    assert "of all (default 0.5)" in text
    assert "--my-kind {a,b} default a" in text
    assert "default None" not in text
    assert "default True" not in text


def test_types_say_what_a_value_must_be():
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be a number in \[0, 1\], got 'nan'"):
        fraction("nan")
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be an integer from 1, got '1.5'"):
        positive_int("1.5")
    assert (positive_int("3"), fraction("1")) == (3, 1.0)
