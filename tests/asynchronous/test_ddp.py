"""Two gloo processes on loopback. NCCL needs GPUs and is not tested."""

import torch

from tests.asynchronous.twins import make_net
from tests.processes import run_ranks
from weight_evolution import AsynchronousUpdate


def test_all_ranks_draw_the_same_and_stay_equal(tmp_path):
    done = run_ranks(2, "tests.asynchronous.ddp_worker", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    model = make_net()
    here = AsynchronousUpdate(torch.optim.SGD(model.parameters()), model, seed=11)
    for form in ("hook", "sgd"):
        assert first[form]["state"] == second[form]["state"]
        assert first[form]["state"]["step"] == 4
        for name, weight in first[form]["weights"].items():
            assert torch.equal(weight, second[form]["weights"][name]), (form, name)
        for step, (ours, theirs) in enumerate(zip(first[form]["drawn"], second[form]["drawn"], strict=True)):
            alone = here.selection(step)  # in this process, which has no process group
            assert list(ours) == list(theirs) == list(alone)
            for name, mask in alone.items():
                assert torch.equal(mask, ours[name])
                assert torch.equal(mask, theirs[name])
