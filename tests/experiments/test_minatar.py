"""The MinAtar experiment, on a small game that takes MinAtar's place where it is not installed."""

import copy
import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn.functional import smooth_l1_loss

from experiments import minatar, minatar_settings, minatar_training
from experiments.minatar_game import Game
from experiments.minatar_replay import Replay
from experiments.minatar_settings import ARMS, Part, Recipe
from experiments.minatar_tables import table
from experiments.minatar_training import Training
from experiments.rivals import BASELINE, CLAIM
from weight_evolution.training.randomness import stream_seed

RECIPE = Recipe(game="breakout", warm_up=10, part=20, target_period=6, epsilon_steps=40, capacity=50)
NAMES = [f"{layer}.{kind}" for layer in (0, 3, 5) for kind in ("weight", "bias")]


class Lights:
    """A light in a row of 5 moves; its place is to be guessed, and a game has 1 to 4 guesses."""

    def __init__(self, name):
        self.random = None

    def seed(self, seed):
        self.random = np.random.RandomState(seed)

    def reset(self):
        self.place, self.left = self.random.randint(5), self.random.randint(1, 5)

    def minimal_action_set(self):
        return [0, 2, 5]

    def state_shape(self):
        return [5, 6, 2]

    def state(self):
        state = np.zeros((5, 6, 2), dtype=bool)
        state[self.place, :, 0] = True
        state[:, self.left, 1] = True
        return state

    def act(self, action):
        assert self.left, "the game is over"
        reward = int(action == (0, 2, 5)[self.place % 3])
        self.left -= 1
        self.place = (self.place + self.random.randint(3)) % 5
        return reward, self.left == 0


@pytest.fixture(autouse=True)
def lights(monkeypatch):
    module = ModuleType("minatar")
    module.Environment = Lights
    monkeypatch.setitem(sys.modules, "minatar", module)


def advance(training, steps):
    found = {}
    for _ in range(steps):
        training.step()
        if training.at_end_of_part:
            found |= training.finish_part()
    return found


def without_seconds(results):
    return {part: {k: v for k, v in result.items() if k != "seconds"} for part, result in results.items()}


def parameters(training, number):
    return training._agents[number].network.state_dict()


def test_replay():
    """A state holds its number in bits; steps are drawn with the state, action, reward and end that belong together."""
    replay = Replay(2, 16, (1, 1, 8))
    generators = [np.random.default_rng(seed) for seed in (0, 1)]

    def seen(agent, step):
        return np.unpackbits(np.array([100 * agent + step], dtype=np.uint8)).reshape(1, 1, 8).astype(bool)

    def numbers(states):
        return (states.flatten(2) @ 2.0 ** torch.arange(7, -1, -1)).long()

    for step in range(40):
        states = np.stack([seen(agent, step) for agent in (0, 1)])
        replay.add(states, np.array([step, 50 + step]), [0.5 * step, -step], [step % 3 == 0, step % 4 == 0])
        if step < 2:
            continue
        batch = replay.sample(generators, 400)
        steps = numbers(batch.states) - torch.tensor([[0], [100]])
        wanted = set(range(max(0, step - 15), step))
        for agent in (0, 1):
            assert set(steps[agent].tolist()) == wanted
        assert torch.equal(numbers(batch.next_states), numbers(batch.states) + 1)
        assert torch.equal(batch.actions, steps + torch.tensor([[0], [50]]))
        assert torch.equal(batch.rewards, steps * torch.tensor([[0.5], [-1.0]]))
        assert torch.equal(batch.over, steps % torch.tensor([[3], [4]]) == 0)


def test_an_agent_of_a_stack_is_as_dqn_written_down():
    """One game, one network, torch.optim.Adam, and no stack."""
    recipe, seed, steps = replace(RECIPE, capacity=1000), 3, 40
    training = Training(recipe, [(BASELINE, 0), (BASELINE, seed)])
    network = copy.deepcopy(training._agents[1].network)
    results = advance(training, steps)

    game, draws = Game("breakout", seed), np.random.default_rng(stream_seed("agent", seed))
    optimizer = torch.optim.Adam(network.parameters(), recipe.lr, eps=recipe.adam_eps)
    target, history, returns, current = copy.deepcopy(network), [], [], 0.0
    for step in range(steps):
        state = torch.from_numpy(game.state().copy()).float()
        greedy = int(network(state[None]).argmax())
        action = int(draws.integers(3)) if draws.random() < max(0.01, 1 - 0.99 * step / 40) else greedy
        reward, over = game.act(action)
        history.append((state, action, reward, over))
        current += reward
        if over:
            returns.append(current)
            current = 0.0
        if (step + 1) % 6 == 0:
            target.load_state_dict(network.state_dict())
        if step + 1 < recipe.warm_up:
            continue
        places = (step - draws.integers(1, step + 1, 64)).tolist()
        for batch in (places[:32], places[32:]):
            states, later = (torch.stack([history[i + k][0] for i in batch]) for k in (0, 1))
            rewards, ended = (torch.tensor([history[i][k] for i in batch]).float() for k in (2, 3))
            with torch.no_grad():
                wanted = rewards + 0.99 * (1 - ended) * target(later).max(1).values
            loss = smooth_l1_loss(network(states)[range(32), [history[i][1] for i in batch]], wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert len(returns) > 10
    assert [x for end in (20, 40) for x in results[Part(BASELINE, seed, end)]["returns"]] == returns
    for name, weight in parameters(training, 1).items():
        torch.testing.assert_close(weight, network.state_dict()[name], rtol=0, atol=1e-5)
    moved = Training(recipe, [(BASELINE, seed)])
    assert not torch.equal(parameters(moved, 0)["3.weight"], parameters(training, 1)["3.weight"])


def test_saved_and_loaded_it_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    for name, value in (("EVERY", 10), ("BATCHES", 4)):
        monkeypatch.setattr(minatar_settings, name, value)
    recipe = replace(RECIPE, capacity=24)
    runs = [(arm, 0) for arm in ARMS]
    whole = Training(recipe, runs)
    wanted = advance(whole, 40)
    first = Training(recipe, runs)
    found = advance(first, 26)  # a measurement has begun
    first.save(tmp_path / "x.pt")
    advance(first, 2)  # what was saved is not what goes on
    second = Training(recipe, runs)
    second.load(tmp_path / "x.pt")
    found |= advance(second, 14)
    assert without_seconds(found) == without_seconds(wanted)
    for number in range(len(runs)):
        for name in NAMES:
            assert torch.equal(parameters(whole, number)[name], parameters(second, number)[name])
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    revived = {arm: sum(result["revived"] for part, result in wanted.items() if part.arm == arm) for arm in ARMS}
    assert revived[BASELINE] == 0
    assert min(revived[arm] for arm in ARMS if arm != BASELINE) > 50


def test_methods_differ_and_own_ages_need_their_optimizer(monkeypatch):
    for name, value in (("EVERY", 5), ("BATCHES", 5)):
        monkeypatch.setattr(minatar_settings, name, value)
    training = Training(RECIPE, [(arm, 0) for arm in ARMS])
    advance(training, 40)
    weights = [tuple(parameters(training, number)["3.weight"].flatten().tolist()) for number in range(len(ARMS))]
    assert len(set(weights)) == len(ARMS)
    for name, agent in zip(ARMS, training._agents, strict=True):
        state = agent.optimizer.state[agent.network[3].weight]
        assert ("row_reset" in state) == (name == CLAIM)


def test_dormant_units():
    training = Training(RECIPE, [(BASELINE, 0)])
    advance(training, 10)
    with torch.no_grad():
        network = training._agents[0].network
        for parameter in network.parameters():
            parameter.fill_(0.01)
        network[0].weight[:4] = 0
        network[0].bias[:2] = -1  # dead
        network[0].bias[2:4] = 1e-4  # hardly active
        network[3].bias[:10] = -9
    (shares,) = training._dormant()
    assert shares == {"0": round(12 / 144, 4), "0.025": round(14 / 144, 4), "0.1": round(14 / 144, 4)}
    assert not network[1]._forward_hooks


def test_all_of_it(tmp_path, capsys):
    output = tmp_path / "there" / "x.jsonl"
    arguments = ["--quick", "--output", str(output), "--arms", BASELINE, CLAIM, "--seeds", "0", "1"]
    assert minatar.main([*arguments, "--minutes", "0.00001"]) == 0
    assert "the time is over after 1 steps" in capsys.readouterr().out
    assert minatar.main([*arguments, "--steps", "25"]) == 0
    capsys.readouterr()
    assert minatar.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "breakout: DQN, 60 steps, 2 updates" in printed
    assert all((f"| {arm} | - |" in printed) == (arm not in (BASELINE, CLAIM)) for arm in ARMS)
    head, *lines = map(json.loads, output.read_text().splitlines())
    assert head["recipe"]["warm_up"] == 10
    assert [(line["arm"], line["seed"], line["steps"]) for line in lines] == [
        (arm, seed, steps) for steps in (20, 40, 60) for arm in (BASELINE, CLAIM) for seed in (0, 1)
    ]

    text = output.read_text()
    assert minatar.main(arguments) == 0
    assert output.read_text() == text
    output.with_suffix(".pt").unlink()
    assert minatar.main([*arguments, "--steps", "20"]) == 0  # what the file has already is not written again
    assert output.read_text() == text
    capsys.readouterr()

    other = tmp_path / "y.jsonl"
    assert minatar.main(["--quick", "--output", str(other), "--seeds", "2", "--steps", "40"]) == 0
    capsys.readouterr()
    both = ["--quick", "--table", "--output", str(output), str(other)]
    assert minatar.main(both) == 0
    assert "breakout: DQN, 40 steps" in (printed := capsys.readouterr().out)
    assert "Seeds 0 1 2," in printed
    assert minatar.main([*both, "--steps", "60"]) == 0
    assert "Seeds 0 1," in capsys.readouterr().out


def test_bad_arguments(tmp_path, capsys, monkeypatch):
    output = tmp_path / "x.jsonl"
    arguments = ["--quick", "--steps", "20", "--output", str(output), "--seeds"]
    assert minatar.main([*arguments, "0"]) == 0
    text = output.read_text()
    for more, message in (
        (["1"], "of other runs"),
        (["0", "--lr", "0.1"], "lr is 0.00025 there and 0.1 here"),
        (["0", "--output", "a", "b"], "several files only with --table"),
    ):
        capsys.readouterr()
        assert minatar.main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    output.with_suffix(".pt").write_bytes(b"nothing")
    assert minatar.main([*arguments, "0"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert output.read_text() == text
    monkeypatch.setitem(sys.modules, "minatar", None)
    assert minatar.main([*arguments, "0"]) == 2
    assert "pip install '.[experiments]'" in capsys.readouterr().err


def results_of(scores, steps=2000):
    """``scores``: (arm, seed) -> the return of all games of the second half; it is 0 in the first."""
    return {
        Part(arm, seed, end): {
            "returns": [0.0] * 5 if end == 1000 else [scores(arm, seed)] * 110,
            "revived": 3,
            "dormant": {"0": 0.1, "0.025": 0.2, "0.1": 0.3 + 0.01 * seed},
        }
        for arm in ARMS
        for seed in range(3)
        for end in range(1000, steps + 1, 1000)
    }


def test_table():
    recipe = Recipe(game="asterix")
    results = results_of(lambda arm, seed: {BASELINE: 2.0, CLAIM: 5.0 + seed}.get(arm, 3.0 + seed))
    text = table(recipe, results)
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in text.splitlines() if "|" in line}
    assert "asterix: DQN, 2,000 steps" in text
    assert rows[BASELINE][1:7] == ["2.00 +- 0.00", "1.00 +- 0.00", "20.0 +- 0.0", "31.0 +- 2.5", "6", "-"]
    claim = rows[CLAIM]
    assert claim[1:3] == ["6.00 +- 2.48", "3.00 +- 1.24"]
    # t = 4 / (1 / sqrt(3)) with two degrees of freedom: p = 0.0202, of which the claim has both scores. With nothing
    # of variance between claim and others (p = 0) and 2 / (1 / sqrt(3)): 0.0742.
    assert claim[6].startswith("+4.00 +- 2.48 (p ")
    assert claim[7].startswith("+2.00 +- 1.24 (p ")
    assert rows["ReDo"][8] == "+2.00 +- 0.00 (p < 0.001) |"
    assert claim[8] == "- |"
    (adjusted,) = {cell.split("(p ")[1] for cell in claim[6:8]}
    assert adjusted == "0.121)"  # 6 of 8 tests are not smaller: 6 * 0.0202

    del results[Part("ReDo", 0, 2000)]
    assert "asterix: DQN, 1,000 steps" in table(recipe, results)
    assert rows["ReDo"][1] == "4.00 +- 2.48"
    assert "| ReDo | 4.50 +- 6.35 |" in table(recipe, results, 2000)
    assert table(recipe, results, 5000) == table(recipe, {}) == "asterix: nothing to report yet"


def test_a_part_without_an_end_of_a_game_counts_as_the_one_before():
    results = {Part(BASELINE, 0, 1000 * (n + 1)): {"returns": r, "revived": 0} for n, r in enumerate([[], [4.0], []])}
    for result in results.values():
        result["dormant"] = {"0.025": 0.0, "0.1": 0.0}
    assert "| baseline | 4.00 | 2.67 | 0.0 | 0.0 | 0 | - | - | - |" in table(Recipe(game="asterix"), results)


def test_games_of_minatar(monkeypatch):
    monkeypatch.delitem(sys.modules, "minatar")
    pytest.importorskip("minatar")
    for name in minatar_settings.GAMES:
        games = [Game(name, seed) for seed in (0, 0, 1)]
        draws = np.random.default_rng(0)
        rewards, ends, differ = 0.0, 0, False
        for _ in range(600):
            action = int(draws.integers(games[0].actions))
            states = [game.state() for game in games]
            assert states[0].shape == games[0].shape
            assert states[0].dtype == bool
            assert np.array_equal(states[0], states[1])
            differ |= not np.array_equal(states[0], states[2])
            (reward, over), again, _ = [game.act(action) for game in games]
            assert (reward, over) == again
            rewards, ends = rewards + reward, ends + over
        assert differ
        assert ends >= 1 or name == "freeway"
        assert rewards > 0 or name == "freeway"


def test_network_is_that_of_minatar():
    network = minatar_training._network((4, 10, 10), 3)
    assert [tuple(p.shape) for p in network.parameters()] == [
        *((16, 4, 3, 3), (16,), (128, 1024), (128,), (3, 128), (3,)),
    ]
