import json
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weight_evolution import filter_health
from weight_evolution.inspection import load_network
from weight_evolution.training import UserError
from weight_evolution.training.models import make_model


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return make_model("resnet8", 3, 10)


def same_weights(found, net):
    theirs = filter_health(found).layers
    ours = filter_health(net).layers
    assert list(theirs) == list(ours)
    for name, layer in ours.items():
        assert torch.equal(theirs[name].norms, layer.norms)
        assert theirs[name].overlapping == layer.overlapping


def save_plain(net, folder):
    torch.save(net.state_dict(), folder / "w.pt")
    return folder / "w.pt"


def save_wrapped(net, folder):
    state = {f"module._orig_mod.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"state": {}}, "model_state_dict": state}, folder / "w.tar")
    return folder / "w.tar"


def save_lightning(net, folder):
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    checkpoint = {"pytorch-lightning_version": "2.5", "state_dict": state, "callbacks": {}, "loops": {}}
    (folder / "version_0" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "version_0" / "checkpoints" / "last.ckpt")
    return folder / "version_0"


def save_safetensors(net, folder):
    save_file(net.state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


def save_hugging_face(net, folder):
    (folder / "config.json").write_text("{}")
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


def save_shards(net, folder):
    state = net.state_dict()
    halves = [dict(list(state.items())[:20]), dict(list(state.items())[20:])]
    names = {}
    for i, half in enumerate(halves):
        save_file(half, folder / f"part-{i}.safetensors")
        names |= dict.fromkeys(half, f"part-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def save_old(net, folder):
    torch.save(net.state_dict(), folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


FILES = [save_plain, save_wrapped, save_lightning, save_safetensors, save_hugging_face, save_shards, save_old]


@pytest.mark.parametrize("save", FILES)
def test_weights_alone(tmp_path, net, save):
    source = load_network(str(save(net, tmp_path)))
    assert not source.runs
    assert source.notes
    found = {name.removeprefix("model."): layer for name, layer in filter_health(source.model).layers.items()}
    ours = filter_health(net).layers
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name].norms, layer.norms) for name, layer in ours.items())


@pytest.mark.parametrize("save", FILES)
def test_weights_in_their_model(tmp_path, net, save):
    source = load_network(str(save(net, tmp_path)), "resnet8")
    assert source.runs
    assert source.notes == ()
    same_weights(source.model, net)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(source.model.eval()(images), net.eval()(images))


def test_evolution_sees_the_same_in_weights_alone(tmp_path, net):
    alone = load_network(str(save_plain(net, tmp_path))).model
    numbers = filter_health(alone).previews["WeightEvolution"].numbers
    whole = filter_health(net).previews["WeightEvolution"].numbers
    assert numbers["norm_elements"] == whole["norm_elements"]
    assert numbers["filters"] == whole["filters"]


def test_embeddings_are_no_filters(tmp_path):
    torch.save({"token_embedding.weight": torch.ones(5, 3), "head.weight": torch.ones(4, 3)}, tmp_path / "w.pt")
    assert set(filter_health(load_network(str(tmp_path / "w.pt")).model).layers) == {"head"}


def test_a_whole_module_only_when_trusted(tmp_path, net):
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(UserError, match="--trust-pickle"):
        load_network(str(tmp_path / "net.pt"))
    source = load_network(str(tmp_path / "net.pt"), trust_pickle=True)
    assert source.runs
    same_weights(source.model, net)


def test_what_does_not_fit_is_said(tmp_path, net):
    state = dict(net.state_dict())
    state["extra.weight"] = torch.zeros(3)
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    missing, unexpected = load_network(str(tmp_path / "w.pt"), "resnet8").notes
    assert "fc.bias" in missing
    assert "extra.weight" in unexpected
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"fc.weight has shape \(10, 64\).*--num-classes"):
        load_network(str(tmp_path / "w.pt"), "resnet8", options={"num_classes": 7})
    with pytest.raises(UserError, match="holds none of the model's parameters"):
        load_network(str(tmp_path / "w.pt"), "vgg16-bn")


def test_by_name(monkeypatch):
    module = types.ModuleType("networks_of_a_test")
    module.make = lambda num_classes=10: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert load_network("networks_of_a_test:make").model[2].out_features == 10
    assert load_network("networks_of_a_test:make", options={"num_classes": 4}).model[2].out_features == 4


class FakeLibrary(types.ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def create_model(self, name, **options):
        self.calls.append((name, options))
        if options["pretrained"]:
            raise OSError("no route to the hub\nand more")
        return nn.Linear(3, options.get("num_classes", 1000))

    def get_model(self, name, **options):
        return self.create_model(name, pretrained=options.pop("weights") == "DEFAULT", **options)


@pytest.mark.parametrize(("library", "module"), [("timm", "timm"), ("torchvision", "torchvision.models")])
def test_libraries(monkeypatch, library, module):
    fake = FakeLibrary(module)
    monkeypatch.setitem(sys.modules, library, FakeLibrary(library))
    monkeypatch.setitem(sys.modules, module, fake)
    assert load_network(f"{library}:net", random=True, options={"num_classes": 7}).model.out_features == 7
    assert fake.calls == [("net", {"pretrained": False, "num_classes": 7})]
    with pytest.raises(UserError, match=r"no route to the hub; without a network pass --random") as raised:
        load_network(f"{library}:net")
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'weight-evolution\["):
        load_network(f"{library}:net", random=True)


def garbage(path):
    path.write_bytes(b"\x80\x02garbage")
    return path


def a_list(path):
    torch.save([1, 2], path)
    return path


def only_numbers(path):
    torch.save({"epoch": 3, "config": {"lr": 0.1}}, path)
    return path


def no_layers(path):
    torch.save({"table": torch.zeros(3), "ids": torch.zeros(3, 4, dtype=torch.int64)}, path)
    return path


def empty_folder(path):
    path.mkdir()
    return path


def bad_safetensors(path):
    path = path.with_suffix(".safetensors")
    path.write_bytes(b"not really")
    return path


def bad_index(path):
    path = path.with_name("model.safetensors.index.json")
    path.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (garbage, "not a file of torch.save or is damaged"),
        (a_list, "holds a list, no weights"),
        (only_numbers, "has no state dict: it holds epoch, config"),
        (no_layers, "no weight of a convolution or Linear"),
        (empty_folder, "holds none of"),
        (bad_safetensors, "not a safetensors file or is damaged"),
        (bad_index, "names a file outside of its folder"),
    ],
)
def test_other_files(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as raised:
        load_network(str(make(tmp_path / "file.pt")))
    assert "\n" not in str(raised.value)


def test_no_such_file():
    with pytest.raises(UserError, match="no such file; a network by name is timm:NAME"):
        load_network("nowhere.pt")
    with pytest.raises(UserError, match="--model is for files"):
        load_network("timm:resnet18", "resnet8")
