"""What the command ``weight-evolution`` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import we_kernels
from we_kernels.info import format_info
from weight_evolution import BackendUnavailableError, ExchangeError, NonFiniteWeightError, command
from weight_evolution.inspection import InspectOptions, SelectionOptions, inspect, weights_file

from .arguments import add_flag, add_options, fraction, non_negative_int, options_of, positive_float, positive_int
from .compacting import compact_checkpoint
from .config import TrainingConfig, rates
from .config_file import format_config, read_config
from .data import CHECKSUM_HELP, DOWNLOAD_HELP, load_data
from .demo import DemoOptions, RandomLabels, Stationary, run_demo
from .errors import UserError
from .launch import own_device, process_group, started_processes
from .methods import METHODS, DistillationMethod, GraftingMethod, method_names, method_options
from .networks import train_networks
from .parallel import PARALLEL, Ranks, parallel_ranks
from .progress import is_watched
from .runs import OutputOptions, train_seeds

_SGD_ALONE = {"--momentum", "--no-nesterov"}
"""Options of --optimizer sgd."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after a one-line error message."""
    parser = make_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    try:
        if getattr(options, "config", None) is not None:
            options = _with_file(parser, given, options)
        options.given = _names(given)
        options.run(options)
    except (UserError, BackendUnavailableError, NonFiniteWeightError, ExchangeError) as error:
        print(f"weight-evolution: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("weight-evolution: interrupted", file=sys.stderr)
        return 130
    return 0


def _with_file(
    parser: argparse.ArgumentParser, given: Sequence[str], options: argparse.Namespace
) -> argparse.Namespace:
    """The options of the file ``--config`` and, before them, those that were given."""
    train: command.Parser = options.parser
    arguments = read_config(options.config, train)
    train.source = f"{options.config}: "
    train.parse_args(arguments)
    train.source = ""
    options = parser.parse_args([given[0], *arguments, *given[1:]])
    options.from_file = _names(arguments)
    return options


def _names(arguments: Sequence[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser, commands = command.make_parser()
    _add_train(commands["train"])
    _add_inspect(commands["inspect"])
    _add_compact(commands["compact"])
    _add_demo(commands["demo"])
    commands["info"].set_defaults(run=lambda options: print(format_info(we_kernels.info())))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a network; the published CIFAR recipe by default. Reports the last epoch's accuracy."
    parser.set_defaults(run=_train, parser=parser, from_file=set())
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="options from a TOML file; those given here go first"
    )
    parser.add_argument("--print-config", action="store_true", help="print such a file of all options, and do nothing")
    _add_data(parser, "folder of the data set's files (default: its usual place)")
    parser.add_argument(
        "--method", default="evolution", help=f"baseline, or {', '.join(METHODS)} (joined by +); default evolution"
    )
    recipe = parser.add_argument_group("recipe")
    add_options(recipe, TrainingConfig)
    recipe.add_argument("--seeds", type=non_negative_int, nargs="+", default=[0], metavar="N", help="default 0")
    for method in METHODS.values():
        method.add_arguments(parser)
    output = parser.add_argument_group("output")
    add_options(output, OutputOptions)
    _add_alias(output, "--extend", of="resume", action="store_true")
    add_flag(output, "quiet", "print the result only")
    machine = _add_machine(parser)
    machine.add_argument(
        "--parallel",
        choices=PARALLEL,
        help="train each network on all ranks that torchrun started, which split the batches: DistributedDataParallel, "
        "or FSDP2 (fully_shard)",
    )
    machine.add_argument(
        "--parallel-timeout",
        type=positive_float,
        default=600.0,
        metavar="S",
        help="after which ranks give up waiting for another (default 600 s)",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Look at the filters of any network: which are zero, inferior, alike, of needless rank, with --data dormant; "
        "what each method would do about it. Nothing is changed."
    )
    parser.set_defaults(run=_inspect)
    parser.add_argument(
        "source",
        help="a file or folder of weights (torch.save, safetensors, Lightning, Hugging Face), a run or checkpoint of "
        "train, a file of compact, timm:NAME or torchvision:NAME with their published weights, or module:factory",
    )
    add_options(parser, InspectOptions)
    own = parser.add_argument_group("what an evolution would select, of a checkpoint of train")
    add_options(own, SelectionOptions)
    _add_alias(parser, "--rate", of="conv_rate", type=fraction)


def _add_compact(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the compact network of a checkpoint of train --method low-rank. "
        "weight_evolution.training.load_compact reads the file."
    )
    parser.set_defaults(run=_compact)
    parser.add_argument("checkpoint", type=Path, help="a file, or the folder of a run")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    _add_alias(parser, "--force", of="overwrite", action="store_true")
    _add_data(parser, "folder of the data set's files, to measure the accuracy")
    _add_machine(parser)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a small network on random labels that change with every task, where units die, and a small ResNet on "
        "digits, where they do not: baseline, weight evolution, ReDo, unit reactivation."
    )
    parser.set_defaults(run=_demo)
    add_options(parser, DemoOptions)
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    _add_alias(parser, "--no-progress", of="quiet", action="store_true")
    add_options(parser.add_argument_group("random labels"), RandomLabels)
    add_options(parser.add_argument_group("ordinary training"), Stationary)
    _add_machine(parser)


def _add_data(parser: argparse.ArgumentParser, root: str) -> None:
    parser.add_argument("--root", type=Path, help=root)
    add_flag(parser, "download", DOWNLOAD_HELP)
    add_flag(parser, "checksum", CHECKSUM_HELP, default=True)


def _add_machine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda when present")
    machine.add_argument("--threads", type=positive_int, metavar="N", help="of torch on the CPU (default: its own)")
    return machine


def _add_alias(parser: argparse._ActionsContainer, name: str, *, of: str, **options: Any) -> None:
    """The spelling that an option had in earlier versions; the help does not show it."""
    parser.add_argument(name, dest=of, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)


def _train(options: argparse.Namespace) -> None:
    seeds = _seeds(options)
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite contradict each other")
    method = _with_teachers(options.method, options.teachers)
    # In a file may be the options of other methods and optimizers, to choose one of them here.
    _refuse_unused(options.given, method)
    if "--method" not in options.given:
        _refuse_unused(options.from_file, method, f"{options.config}: ")
    chosen = options.given | (set() if "--optimizer" in options.given else options.from_file)
    others = set() if options.optimizer == "sgd" else _SGD_ALONE
    if unused := sorted(chosen & others):
        file = "" if options.given.issuperset(unused) else f"{options.config}: "
        raise UserError(
            f"{file}{', '.join(unused)} belongs to --optimizer sgd, not to {options.optimizer}; leave it out"
        )
    grafting = GraftingMethod.name in method_names(method)
    if started_processes() is not None and not grafting and options.parallel is None:
        raise UserError(
            f"under torchrun only --method grafting trains, one network on each rank; got {options.method!r}; with "
            "--parallel ddp (or fsdp) all ranks train one network together"
        )
    device = own_device(_device(options))
    own_rates: dict[str, Any] = {
        name: v for name, v in rates(options.optimizer).items() if getattr(options, name) is None
    }
    config = options_of(
        TrainingConfig,
        options,
        method=method,
        method_options=method_options(method, options),
        nesterov=options.nesterov and options.momentum > 0,
        **own_rates,
    )
    if options.print_config:
        print(format_config(options.parser, options, others.union(*_unused(method).values())))
        return
    with parallel_ranks(options.parallel, device, options.parallel_timeout) as ranks:
        _train_on(ranks, options, config, seeds, device)


def _train_on(
    ranks: Ranks, options: argparse.Namespace, config: TrainingConfig, seeds: Sequence[int], device: torch.device
) -> None:
    """Train, write and, on the first rank, print."""
    ring = started_processes() is not None and ranks.mode is None  # the bars of all would lie over each other
    watched = not options.quiet and not ring and ranks.first and is_watched()
    output = options_of(OutputOptions, options, progress=watched)
    load = partial(load_data, config.data, options.root, options.download, options.checksum, config.image_size)
    if options.download and ranks.count > 1:
        ranks.on_first(lambda: load() and None)  # two must not write the same files
    dataset = load()
    say = (lambda line: None) if options.quiet or not ranks.first else partial(print, flush=True)
    if GraftingMethod.name in method_names(config.method):
        with process_group(device, options.graft_time_out) if ring else nullcontext() as group:
            results = train_networks(config, seeds, dataset, device, output, say, group, ranks)
            if ranks.first and (group is None or dist.get_rank(group) == 0):
                print(_networks_line(results))
                _print_average(config, results)
                print(f"results in {options.output}")
        return
    results = train_seeds(config, seeds, dataset, device, output, say, ranks)
    if ranks.first:
        _print_results(options, config, results)


def _print_results(options: argparse.Namespace, config: TrainingConfig, results: dict[str, Any]) -> None:
    best = max(run["best_epoch_test_accuracy"] for run in results["runs"])
    run = results["runs"][0]
    compact = "accuracy_of" in run
    print(
        f"test accuracy of {'the compact network, ' if compact else ''}the last epoch: {_accuracy(results)}; "
        f"best single epoch, chosen on the test set: {best:.2f}%"
    )
    _print_average(config, results)
    if compact:
        seed = f" (seed {run['seed']})" if len(results["runs"]) > 1 else ""
        print(
            f"compact network{seed}: parameters {run['parameters']:,} -> {run['compact_parameters']:,}, "
            f"MACs {run['macs']:,} -> {run['compact_macs']:,}; weight-evolution compact CHECKPOINT -o OUT writes it"
        )
    print(f"results in {options.output}")


def _refuse_unused(given: set[str], method: str, source: str = "") -> None:
    """Options of a method that is not used would be ignored."""
    for name, own in _unused(method).items():
        if unused := sorted(own & given):
            raise UserError(
                f"{source}{', '.join(unused)} belongs to --method {name}, which --method {method} is without; leave it "
                "out, or join the methods by +"
            )


def _unused(method: str) -> dict[str, set[str]]:
    """Method that is not used -> its options."""
    used, found = method_names(method), {}
    for name in [name for name in METHODS if name not in used]:
        parser = argparse.ArgumentParser(add_help=False)
        METHODS[name].add_arguments(parser)
        found[name] = {option for action in parser._actions for option in action.option_strings}
    return found


def _with_teachers(method: str, teachers: Sequence[str] | None) -> str:
    """``--teachers`` switches distillation on, beside whatever else is done."""
    names = method_names(method)
    if not teachers or DistillationMethod.name in names:
        return method
    return "+".join([*names, DistillationMethod.name])


def _accuracy(results: dict[str, Any], of: str = "last_epoch_test_accuracy") -> str:
    mean, deviation = results[f"{of}_mean"], results[f"{of}_std"]
    return f"{mean:.2f}%" + ("" if deviation is None else f" +- {deviation:.2f} ({len(results['runs'])} seeds)")


def _print_average(config: TrainingConfig, results: dict[str, Any]) -> None:
    if config.ema is not None:
        average = _accuracy(results, "last_epoch_ema_test_accuracy")
        print(f"test accuracy of the average of the weights (--ema {config.ema:g}), last epoch: {average}")


def _networks_line(results: dict[str, Any]) -> str:
    count = len(results["runs"][0]["networks_last_epoch_test_accuracy"])
    return (
        f"test accuracy of the last epoch: {_accuracy(results)}, the first network; "
        f"{_accuracy(results, 'best_network_last_epoch_test_accuracy')}, the best of {count}, chosen on the test set"
    )


def _inspect(options: argparse.Namespace) -> None:
    chosen = options_of(SelectionOptions, options, thresholds=tuple(options.thresholds))
    print(inspect(options.source, options_of(InspectOptions, options), chosen))


def _compact(options: argparse.Namespace) -> None:
    device = _device(options)
    print(
        compact_checkpoint(
            weights_file(options.checkpoint),
            options.output,
            device,
            root=options.root,
            download=options.download,
            checksum=options.checksum,
            overwrite=options.overwrite,
        )
    )


def _demo(options: argparse.Namespace) -> None:
    demo = options_of(
        DemoOptions,
        options,
        seeds=tuple(_seeds(options)),
        random_labels=options_of(RandomLabels, options, images=RandomLabels.images, batch_size=RandomLabels.batch_size),
        stationary=options_of(Stationary, options),
    )
    print(run_demo(demo, _device(options), quiet=options.quiet))


def _seeds(options: argparse.Namespace) -> list[int]:
    seeds: list[int] = options.seeds
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    return seeds


def _device(options: argparse.Namespace) -> torch.device:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    use_cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


if __name__ == "__main__":
    sys.exit(main())
