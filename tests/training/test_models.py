import sys
import types

import pytest
import torch
from torch import nn

from weight_evolution.training.errors import UserError
from weight_evolution.training.models import check_output, make_model


# Counted by hand from the papers' tables; He et al. print 0.27M, 0.46M, 0.85M and 1.7M.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet8", 75_290 + 0),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("mobilenetv2", 2_236_682),
        ("vgg16-bn", 14_724_042),
    ],
)
def test_number_of_parameters(name, parameters):
    assert sum(p.numel() for p in make_model(name, 3, 10).parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vgg16-bn"])
@pytest.mark.parametrize("image", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_shapes(name, image):
    model = make_model(name, image[0], 7)
    assert model.eval()(torch.rand(2, *image)).shape == (2, 7)
    check_output(model, name, torch.Size(image), 7)


def test_shortcut_without_parameters():
    model = make_model("resnet8", 1, 10)
    block = model.layer2[0]
    with torch.no_grad():
        block.bn2.weight.zero_()
    x = torch.rand(2, 16, 6, 6)
    y = block.eval()(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("name", ["resnet21", "resnet2", "resnet", "vgg", "", "MobileNetV2"])
def test_unknown_names(name):
    with pytest.raises(UserError, match="--model"):
        make_model(name, 1, 10)


@pytest.fixture
def factories(monkeypatch):
    module = types.ModuleType("my_models")
    module.linear = lambda num_classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    module.conv = lambda **options: nn.Conv2d(options["in_channels"], options["num_classes"], 3)
    module.number = lambda: 3
    module.constant = 3
    monkeypatch.setitem(sys.modules, "my_models", module)


@pytest.mark.usefixtures("factories")
def test_own_factory():
    assert make_model("my_models:linear", 1, 4)(torch.rand(2, 1, 3, 3)).shape == (2, 4)
    assert make_model("my_models:conv", 2, 4).weight.shape == (4, 2, 3, 3)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:net", "No module named"),
        ("my_models:missing", "no attribute"),
        ("my_models:constant", "not callable"),
        ("my_models:number", "must give a torch.nn.Module, got int"),
        (":net", "--model"),
    ],
)
def test_own_factory_errors(name, message):
    with pytest.raises(UserError, match=message):
        make_model(name, 1, 10)


@pytest.mark.usefixtures("factories")
def test_output_of_the_wrong_shape():
    model = make_model("my_models:conv", 1, 10)
    with pytest.raises(UserError, match=r"must give logits of shape \(1, 10\)"):
        check_output(model, "my_models:conv", torch.Size((1, 8, 8)), 10)
    with pytest.raises(UserError, match="does not take images of shape"):
        check_output(model, "my_models:conv", torch.Size((3, 8, 8)), 10)


def test_missing_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install '\.\[timm\]'"):
        make_model("timm:resnet18", 3, 10)


def test_timm(monkeypatch):
    timm = types.ModuleType("timm")
    timm.create_model = lambda name, pretrained, in_chans, num_classes: nn.Conv2d(in_chans, num_classes, 1)
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert make_model("timm:resnet18", 2, 5).weight.shape == (5, 2, 1, 1)
