"""Two gloo processes on loopback. NCCL needs GPUs and is not tested."""

import torch

from tests.processes import run_ranks


def test_all_ranks_stay_equal(tmp_path):
    done = run_ranks(2, "tests.reactivation.ddp_worker", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    for key, state in first["state"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, second["state"]["state"][key][name]), (key, name)
    assert first["state"]["state"][0]["row_reset"].tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
