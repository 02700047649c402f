"""The study: its batches, arms, plan, tuning and tables, and whole runs of it on a few digits."""

import copy
import json
import re
import time
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from experiments import study, study_networks, study_training
from experiments.journal import Journal
from experiments.study_arms import ARMS, BASELINE, NORMS_UNDECAYED, Training, _new_filters_, prune_
from experiments.study_data import Batches, Stream, load_pool
from experiments.study_figure import plot
from experiments.study_networks import make_network
from experiments.study_plan import next_stack
from experiments.study_settings import TABLES, Recipe, Run, base_run, chosen_values, tuning_runs
from experiments.study_tables import tables
from experiments.study_training import Clock, Place, Shape, TooLong, train
from weight_evolution import FilterGrafting, UnitActivity
from weight_evolution.training import UserError
from weight_evolution.training.randomness import seeded

RECIPE = Recipe(
    data="digits",
    size=8,
    images=64,
    network="vgg",
    batch_size=16,
    epochs=2,
    repair_epochs=2,
    momentum=0.9,
    large_lr=1.0,
    published_weight_decay=5e-4,
    large_weight_decay=0.03,
    label_noise=0.5,
    learning_rates=[0.1, 0.3],
    weight_decays=[1e-3, 1e-2],
    tuned="arms",
    tuning_seeds=[100],
    seeds=[0, 1],
)
ALL = list(TABLES.values())
MAIN = [table.shortened() for table in ALL]
VALUES = 0.1, 1e-3
REVIVING = {
    *("weight evolution, rate 0.6, once", "random new filters, once", "reactivation by activity"),
    *("reactivation by L1", "rate 0.6 once, then reactivation by activity", "not pruned"),
}


@pytest.fixture(scope="module")
def pool():
    return load_pool("digits", None, 8, torch.device("cpu"))


@pytest.fixture
def place(pool, tmp_path):
    return Place(pool, tmp_path / "states", "each")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Of 40 filters."""
    monkeypatch.setattr(study_networks, "CHANNELS", (4, 4, 8, 8, 8, 8))


def small_network(seed=0):
    torch.manual_seed(seed)
    return make_network("vgg", 1, 10)


def test_held_out_images_are_trained_on_by_nobody(pool):
    assert len(pool.held_out) == len(torch.cat([pool.train, pool.held_out])) // 5
    batches = Batches(pool, [Stream(seed) for seed in range(20)], len(pool.train), 16)
    assert int(batches._chosen.max()) == len(pool.train) - 1
    torch.testing.assert_close(pool.train.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(pool.train.std(), torch.tensor(1.0))


def test_batches_are_crops_of_their_images(pool):
    """With their labels; every image at most once; a stream's do not depend on the others in its company."""
    pool = replace(pool, flip=True)
    images, labels = next(iter(Batches(pool, [Stream(0), Stream(1)], 64, 16).epoch(0)))
    alone, own_labels = next(iter(Batches(pool, [Stream(1)], 64, 16).epoch(0)))
    assert torch.equal(images[1], alone[0])
    assert torch.equal(labels[1], own_labels[0])
    assert not torch.equal(images[0], images[1])
    shifts = {(i, j) for i in range(3) for j in range(3)}
    seen, mirrored = set(), 0
    for image, label in zip(images[0], labels[0], strict=True):
        found = []
        for i, j in shifts:
            window = pool.padded[:, i : i + 8, j : j + 8].movedim(3, 1)
            for flipped in (False, True):
                same = (window == (image.flip(2) if flipped else image)).flatten(1).all(1)
                found += [(int(n), flipped) for n in same.nonzero()]
        assert {int(pool.train_labels[n]) for n, _ in found} == {int(label)}
        seen.add(found[0][0])
        mirrored += found[0][1]
    assert len(seen) == 16
    assert 2 <= mirrored <= 14


def test_a_second_network_has_the_images_in_another_order(pool):
    (_, first), (_, other) = (next(iter(Batches(pool, [Stream(0, number)], 64, 64).epoch(0))) for number in range(2))
    assert not torch.equal(first, other)
    assert torch.equal(first.sort()[0], other.sort()[0])


def test_noisy_labels(pool):
    clean, noisy = (Batches(pool, [Stream(0)], 700, 16, share)._labels[0] for share in (0.0, 0.4))
    assert 0.3 < float((clean != noisy).float().mean()) < 0.42  # a tenth of 0.4 is right by chance
    assert torch.equal(noisy, Batches(pool, [Stream(3), Stream(0)], 700, 16, 0.4)._labels[1])


def test_too_many_images(pool):
    with pytest.raises(UserError, match="--images must be from the batch size, 16, to"):
        Batches(pool, [Stream(0)], 10_000, 16)


def test_a_run_is_what_torch_would_train(pool, place, monkeypatch):
    """Baselines, by hand: cosine, momentum, decay of some parameters only, the order and augmentation of batches."""
    measured = []
    monkeypatch.setattr(study_training, "_accuracy", lambda *given: measured.append(given) or 50.0)
    runs = [Run("healthy", BASELINE, 0.1, 1e-2, 0), Run("healthy", NORMS_UNDECAYED, 0.05, 1e-1, 1)]
    runs.append(replace(runs[0], seed=100))
    results = train(runs, RECIPE, place, {})
    assert [result["images"] for result in results] == ["test", "test", "held-out"]
    assert [images is pool.test for _, images, _ in measured] == [True, True, False]
    assert measured[2][1] is pool.held_out
    assert measured[2][2] is pool.held_out_labels
    for run, (trained, _, _) in zip(runs, measured, strict=True):
        wanted = _by_hand(pool, run, run.arm == BASELINE).state_dict()
        for name, tensor in trained.state_dict().items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)
    saved = torch.load(place.state_file(runs[0]), weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in measured[0][0].state_dict().items())


def _by_hand(pool, run, decays_norms):
    with seeded(torch.device("cpu"), "network", run.seed, 0):
        network = make_network("vgg", 1, 10)
    others = [p for p in network.parameters() if p.dim() == 1]
    matrices = [p for p in network.parameters() if p.dim() > 1]
    groups = [{"params": others, "weight_decay": run.weight_decay * decays_norms}, {"params": matrices}]
    optimizer = torch.optim.SGD(groups, run.lr, momentum=0.9, weight_decay=run.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * 4)
    batches = Batches(pool, [Stream(run.seed)], 64, 16)
    for epoch in range(2):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(network(images[0]), labels[0]).backward()
            optimizer.step()
            schedule.step()
    return network


def test_all_arms_run(place):
    """Those of several networks, other lengths and shapes included; all that are alike in one stack."""
    base = Run("healthy", BASELINE, *VALUES, 0)
    train([base], RECIPE, place, {})
    runs = {Run(table.condition, arm, *VALUES, 0) for table in TABLES.values() for arm in table.arms}
    for shape in {Shape.of(run, RECIPE) for run in runs}:
        alike = [run for run in runs if Shape.of(run, RECIPE) == shape]
        for run, result in zip(alike, train(alike, RECIPE, place, {0: base}), strict=True):
            assert isinstance(result, dict), (run, result)
            assert 0 <= result["accuracy"] <= 100
            revived = result["zero"] < 20
            if run.condition == "pruned" and run.arm in REVIVING:
                assert revived, run
            elif run.condition == "pruned" and run.arm == BASELINE:
                assert result["zero"] == 20


def test_average_of_weights():
    network = small_network()
    method = ARMS["average of weights"].make(Training(network, torch.optim.SGD(network.parameters()), 1, 1, 0))
    wanted = None
    for step in range(3):
        with torch.no_grad():
            network[0].weight.fill_(step)
            network[1].running_mean.fill_(10 * step)
        method.after_step(step + 1)
        wanted = step if wanted is None else 0.99 * wanted + 0.01 * step
    average = method.result()
    torch.testing.assert_close(average[0].weight.mean(), torch.tensor(wanted))
    torch.testing.assert_close(average[1].running_mean.mean(), torch.tensor(10 * wanted))
    assert float(network[0].weight.detach().mean()) == 2


@pytest.mark.parametrize(
    ("arm", "steps"),
    [("low-rank projection", [3, 6, 9]), ("low-rank projection, every 250 iterations", [250, 500, 501])],
)
def test_projections_end_with_the_last_epoch(arm, steps, monkeypatch):
    per_epoch = 3 if steps[0] == 3 else 167
    network = small_network()
    method = ARMS[arm].make(Training(network, torch.optim.SGD(network.parameters()), 3, per_epoch, 0))
    done = []
    monkeypatch.setattr(method._projection, "step", lambda: done.append(iteration))
    for iteration in range(1, 3 * per_epoch + 1):
        method.after_step(iteration)
        if iteration % per_epoch == 0:
            method.after_epoch(iteration // per_epoch - 1)
    assert done == steps


def test_grafting_of_networks_in_a_stack(place, monkeypatch):
    """After every epoch but the last; two networks are alike behind it."""
    grafts = []
    step = FilterGrafting.step

    def noted(self):
        before = [copy.deepcopy(network.model.state_dict()) for network in self._networks]
        step(self)
        grafts.append((before, [copy.deepcopy(network.model.state_dict()) for network in self._networks]))

    monkeypatch.setattr(FilterGrafting, "step", noted)
    runs = [Run("healthy", arm, *VALUES, 0) for arm in ("plain averaging", BASELINE)]
    train(runs, replace(RECIPE, epochs=3), place, {})
    assert len(grafts) == 2
    for (one, other), (first, second) in grafts:
        assert not torch.allclose(one["0.weight"], other["0.weight"])
        torch.testing.assert_close(first["0.weight"], (one["0.weight"] + other["0.weight"]) / 2)
        torch.testing.assert_close(second["0.weight"], first["0.weight"])


def test_pruned_filters_stay_dead():
    network = small_network()
    prune_(network)
    convs = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    assert [int((c.weight == 0).flatten(1).all(1).sum()) for c in convs] == [len(c.weight) // 2 for c in convs]
    with UnitActivity(network) as activity:
        network.train()(torch.randn(20, 1, 8, 8))
    dead = activity.activations() == 0
    cross_entropy(network(torch.randn(20, 1, 8, 8)), torch.zeros(20, dtype=torch.int64)).backward()
    assert int(dead.sum()) >= 20
    for conv, old in zip(
        convs, (layer for layer in small_network() if isinstance(layer, torch.nn.Conv2d)), strict=True
    ):
        gone = (conv.weight == 0).flatten(1).all(1)
        assert not conv.weight.grad[gone].any()
        norms = old.weight.detach().abs().flatten(1).sum(1)
        assert norms[gone].max() < norms[~gone].min()


def test_random_new_filters():
    network = small_network()
    prune_(network)
    before = copy.deepcopy(network)
    _new_filters_(Training(network, torch.optim.SGD(network.parameters()), 1, 1, 0))
    for old, new in zip(before, network, strict=True):
        if isinstance(old, torch.nn.Conv2d):
            norms, dead = new.weight.abs().flatten(1).sum(1), (old.weight == 0).flatten(1).all(1)
            torch.testing.assert_close(norms[dead], norms[~dead].mean().expand(int(dead.sum())))
            assert torch.equal(new.weight[~dead], old.weight[~dead])
        if isinstance(old, torch.nn.BatchNorm2d):
            assert (new.weight != 0).all()


def test_values_are_chosen_on_held_out_images_of_other_seeds():
    runs = tuning_runs("healthy", "grafting", RECIPE, {})
    assert [(run.lr, run.weight_decay, run.seed) for run in runs] == [
        (lr, decay, 100) for lr in (0.1, 0.3) for decay in (1e-3, 1e-2)
    ]
    results = {run: {"accuracy": 10.0 * number} for number, run in enumerate(runs)}
    assert chosen_values("healthy", "grafting", RECIPE, {}) is None
    assert chosen_values("healthy", "grafting", RECIPE, results) == (0.3, 1e-2)
    assert chosen_values("healthy", BASELINE, RECIPE, results) is None
    shared = replace(RECIPE, tuned="baselines")
    baselines = {replace(run, arm=BASELINE): result for run, result in results.items()}
    assert chosen_values("healthy", "grafting", shared, baselines) == (0.3, 1e-2)
    assert chosen_values("healthy", NORMS_UNDECAYED, shared, baselines) is None
    assert chosen_values("large-lr", "grafting", RECIPE, {}) == (1.0, 5e-4)
    assert chosen_values("large-decay", BASELINE, RECIPE, baselines) == (0.3, 0.03)
    given = replace(RECIPE, learning_rates=[0.2], weight_decays=[0.0])
    assert chosen_values("healthy", "grafting", given, {}) == (0.2, 0.0)
    assert tuning_runs("healthy", "grafting", given, {}) == []
    assert {run.weight_decay for run in tuning_runs("pruned", "not pruned", RECIPE, baselines)} == {1e-2}


@pytest.mark.parametrize("chosen", [ALL, MAIN], ids=["all", "main"])
def test_the_plan_ends_with_everything_reported(chosen, place):
    """Shapes are not mixed, nothing is trained twice, what others need comes first."""
    results = {}
    while runs := next_stack(chosen, RECIPE, results, place, 12):
        assert len({Shape.of(run, RECIPE) for run in runs}) == 1
        assert sum(ARMS[run.arm].networks for run in runs) <= 12
        assert not set(runs) & set(results)
        for run in runs:
            if run.condition == "pruned":
                assert place.state_file(base_run(RECIPE, results, run.seed)).exists()
            results[run] = {"accuracy": run.lr - run.weight_decay, "images": "", "filters": 1, "inferior": 0}
            results[run] |= {"parameters": 1, "seed": run.seed}
            if (run.condition, run.arm) == ("healthy", BASELINE):
                place.states.mkdir(exist_ok=True)
                place.state_file(run).touch()
    for table in chosen:
        for arm in table.arms:
            values = chosen_values(table.condition, arm, RECIPE, results)
            assert all(Run(table.condition, arm, *values, seed) in results for seed in RECIPE.seeds)
    assert {(run.condition, run.arm) for run in results} == {row for table in chosen for row in table.rows.values()}
    text = "\n".join(tables(chosen, RECIPE, results))
    assert "nothing to report" not in text
    assert text.count("(edge)") > 0


def test_lost_states_are_trained_again_and_failed_runs_are_not(place):
    results = {run: {"accuracy": 1.0} for run in tuning_runs("healthy", BASELINE, RECIPE, {})}
    results |= {Run("healthy", BASELINE, *VALUES, seed): {"accuracy": 1.0} for seed in RECIPE.seeds}
    runs = next_stack([TABLES["repair"]], RECIPE, results, place, 12)
    assert {(run.condition, run.seed) for run in runs} == {("healthy", 100), ("healthy", 0), ("healthy", 1)}
    assert next_stack([TABLES["repair"]], RECIPE, results, place, 12, failed=runs) == []


def test_main_arms_are_some_of_all():
    """Of every table, with what they are compared with; what was not trained leaves no row."""
    for table, short in zip(ALL, MAIN, strict=True):
        assert BASELINE in short.arms
        assert set(short.arms) <= set(table.arms)
        assert table.rival in short.rows or table.title == "Over-wide"
    assert sum(len(short.arms) for short in MAIN) < 0.6 * sum(len(table.arms) for table in ALL)


def test_differences_are_paired():
    """By seeds that both have; from the baseline and from the rival, of which the difference is tested once."""
    rows = {BASELINE: (10.0, 20.0, 99.0), "grafting": (12.0, 21.0), "one network, twice as long": (13.0, 23.0)}
    results = {}
    for arm, accuracies in rows.items():
        results |= {run: {"accuracy": 1.0} for run in tuning_runs("healthy", arm, RECIPE, results)}
        for seed, accuracy in enumerate(accuracies):
            result = {"accuracy": accuracy, "filters": 3, "inferior": 1, "parameters": 2000}
            results[Run("healthy", arm, *VALUES, seed)] = result
    recipe = replace(RECIPE, seeds=[0, 1, 2])
    text = "\n".join(tables([TABLES["two"]], recipe, results))
    start = "| grafting | 0.1 (edge) | 0.001 (edge) | 16.50 +- 57.18 |"
    assert f"{start} +1.50 +- 6.35 (p 0.410) | -1.50 +- 6.35 (p 0.410) | 2 | 1 of 3 | 2x, 2k" in text
    assert "| plain averaging | - |" in text


def test_figure(place, tmp_path):
    results = {}
    for table in TABLES.values():
        for row, (condition, arm) in table.rows.items():
            results |= {run: {"accuracy": 1.0} for run in tuning_runs("healthy", BASELINE, RECIPE, results)}
            results |= {run: {"accuracy": 1.0} for run in tuning_runs(condition, arm, RECIPE, results)}
            values = chosen_values(condition, arm, RECIPE, results)
            for seed in RECIPE.seeds:
                results[Run(condition, arm, *values, seed)] = {"accuracy": 50.0 + seed + len(row)}
    plot(ALL, RECIPE, results, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_an_arm_that_fails_does_not_stop_the_others(place, monkeypatch, capsys):
    def broken(training):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(ARMS, "half the rate", replace(ARMS["half the rate"], make=broken))
    runs = [Run("healthy", arm, *VALUES, 0) for arm in ("half the rate", BASELINE)]
    failed, result = train(runs, RECIPE, place, {})
    assert failed == "RuntimeError: no such kernel"
    assert result["accuracy"] >= 0
    assert "no such kernel" in capsys.readouterr().err


def test_a_network_that_diverges_is_a_result(place):
    run = Run("healthy", "weight evolution, paper rule", 1e30, 0.0, 0)
    (result,) = train([run], RECIPE, place, {})
    assert result["diverged"]
    assert result["accuracy"] < 20


def test_a_stack_that_would_take_too_long_ends_early(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(1000, 100.0, torch.device("cpu"))
    for done in range(1, 50):
        now[0] = 0.2 * done
        clock.tick(done)
    now[0] = 10.0
    with pytest.raises(TooLong):
        clock.tick(50)
    clock = Clock(1000, 100.0, torch.device("cpu"))
    for done in range(1, 1001):
        now[0] = 0.099 * done
        clock.tick(done)


def test_command(tmp_path, capsys):
    """It resumes, halves what does not fit, and says what is wrong."""
    output = tmp_path / "study.jsonl"
    command = ["--data", "digits", "--quick", "--tables", "repair", "--stack", "40", "--output", str(output)]
    command += ["--tuning-seeds", "100", "--tuned", "baselines", "--images", "64", "--seeds", "0"]
    assert study.main([*command, "--minutes", "1e-9"]) == 0
    assert "the time is over" in capsys.readouterr().out
    assert study.main(command) == 0
    first = capsys.readouterr().out
    assert re.search(r"\| weight evolution, rate 0.6, once \| 0.\d+ \(edge\) \| 0.002 \| \d", first)
    lines = output.read_text().splitlines()
    assert json.loads(lines[1])["images"] == "held-out"
    assert study.main(command) == 0
    figure = tmp_path / "study.png"
    assert study.main([*command, "--table", "--figure", str(figure)]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    assert not figure.exists()
    assert output.read_text().splitlines() == lines
    assert study.main([*command, "--seeds", "100"]) == 2
    assert "must not hold 100" in capsys.readouterr().err
    assert study.main([*command, "--epochs", "7"]) == 2
    assert "epochs" in capsys.readouterr().err
    if not torch.cuda.is_available():
        other = [str(tmp_path / "other.jsonl")]
        assert study.main([*command, "--device", "cuda", "--output", *other]) == 2
        assert "no GPU" in capsys.readouterr().err


def test_journals_know_what_was_too_large(tmp_path):
    path = tmp_path / "study.jsonl"
    Journal(path, RECIPE, Run).write(Run("healthy", BASELINE, *VALUES, 0), {"accuracy": 1.0})
    with pytest.raises(UserError, match="large_lr"):
        Journal(path, replace(RECIPE, large_lr=0.5), Run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1"], "--epochs must be at least 2 with --tables low-rank"),
        (["--network", "mobilenetv2"], "--tables repair needs one of --network vgg vgg-plain"),
        (["--network", "resnet20", "--tables", "repair"], "--tables repair needs one of --network vgg vgg-plain"),
    ],
)
def test_refused(arguments, message, tmp_path, capsys):
    assert study.main([*arguments, "--output", str(tmp_path / "a.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("width", "parameters"), [(0.35, 408_938), (0.66, 1_078_762), (2.0, 8_722_698)])
def test_mobilenet_v2_of_any_width(width, parameters):
    """As many parameters as torchvision's has."""
    network = make_network("mobilenetv2", 3, 10, width)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 10)
