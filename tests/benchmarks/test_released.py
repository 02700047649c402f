import pytest
import torch

from benchmarks import released
from benchmarks.baselines import Backend
from benchmarks.case import Case
from benchmarks.verify import WrongResultError

STAND_IN = """
raise RuntimeError("the script itself must not run")

def sigmoid(x):
    return 1 / (1 + np.exp(-x))

def valid_num(net, epoch):
    global seen
    seen = args.radio_conv * sigmoid(epoch), args.radio_bn * sigmoid(epoch), args.lab, ln_per

def evolution(net):
    global low_cut_count
    low_cut_count += 1
    print("noise")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(2)
"""


def clone(root, program):
    path = root / released.PROGRAM
    path.parent.mkdir(parents=True)
    path.write_text(program)
    return root


def test_functions_run_on_the_memory_of_the_case(tmp_path, capsys):
    case = Case("resnet20", norms=True, rule="released")
    before = [weight.clone() for weight in case.weights]
    step = released.ReleasedProgram(clone(tmp_path, STAND_IN)).step(case)
    step()
    assert step.__closure__ is not None
    program = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, dict))
    assert program["seen"] == pytest.approx((0.2, 0.05, 0.1, 9.5))
    for weight, old in zip(case.weights, before, strict=True):
        assert torch.equal(weight, 2 * old if weight.dim() == 4 else old)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("program", [None, "def sigmoid(x): ...\ndef evolution(net): ...\n"])
def test_another_directory_is_refused(tmp_path, program):
    if program is not None:
        clone(tmp_path, program)
    with pytest.raises(released.NotAReleaseError, match=r"WE/WE_cifar/we\.py" if program is None else "no valid_num"):
        released.ReleasedProgram(tmp_path)


def test_verify_accepts_the_reference_and_nothing_else():
    case = Case("resnet20", norms=True, rule="released")
    with Backend("torch").active():
        Backend("torch").step(case)
    released.verify(case)
    with pytest.raises(WrongResultError, match="filters differ"):
        released.verify(case)  # the weights as they were before the evolution
