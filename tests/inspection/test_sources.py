import json
import os
import sys
import types
import zipfile

import numpy as np
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


def averaged(net):
    return {"n_averaged": torch.tensor(1), **{f"module.{name}": value for name, value in net.state_dict().items()}}


def momentum(net):
    named = {name: {"exp_avg": torch.zeros(3, 3)} for name in net.state_dict()}
    return {"state": {0: {"momentum_buffer": torch.zeros(3, 3)}, **named}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("holds", "key", "notes"),
    [
        (lambda net, other: {"model": net.state_dict(), "optimizer": momentum(other), "epoch": 3}, None, []),
        (
            lambda net, other: {"state_dict_ema": other.state_dict(), "state_dict": net.state_dict()},
            None,
            ["read: state_dict, not state_dict_ema; --key names another"],
        ),
        (
            lambda net, other: {"model": other.state_dict(), "model_ema": averaged(net)},
            "model_ema",
            [],
        ),
        (lambda net, other: {"a": {"b": {"c": net.state_dict()}}}, None, ["read: a.b.c"]),
        (lambda net, other: {"a": {"b": {"c": net.state_dict()}}}, "a.b.c", []),
        (lambda net, other: {"a": {"b": {"c": net.state_dict()}}}, "a", ["read: a.b.c"]),
        (lambda net, other: {"a.b": {0: net.state_dict(), 1: other.state_dict()}}, "a.b.0", []),
        (lambda net, other: {"generator": other.state_dict(), "discriminator": net.state_dict()}, "discriminator", []),
        (
            lambda net, other: {"a": {"model": net.state_dict(), "model_ema": averaged(other)}},
            "a",
            ["read: a.model, not a.model_ema; --key names another"],
        ),
    ],
)
@pytest.mark.parametrize("model", [None, "resnet8"])
def test_entries(tmp_path, net, holds, key, notes, model):
    other = make_model("resnet8", 3, 10)
    torch.save(holds(net, other), tmp_path / "w.pt")
    source = load_network(str(tmp_path / "w.pt"), model, key=key)
    assert [note for note in source.notes if "no --model" not in note] == notes
    same_weights(source.model, net)


@pytest.mark.parametrize("key", [None, "now"])
def test_modules_among_the_entries(tmp_path, net, key):
    torch.save({"now": net, "epoch": 3}, tmp_path / "w.pt")
    source = load_network(str(tmp_path / "w.pt"), trust_pickle=True, key=key)
    assert source.runs
    same_weights(source.model, net)


def test_which_entry_must_be_said(tmp_path, net):
    state = net.state_dict()
    torch.save({"generator": state, "discriminator": state}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds several networks: generator, discriminator; name one by --key"):
        load_network(str(tmp_path / "w.pt"))
    with pytest.raises(
        UserError, match=r"--key critic: there is no such entry in .*; it holds generator, discriminator"
    ):
        load_network(str(tmp_path / "w.pt"), key="critic")
    with pytest.raises(UserError, match="holds a Tensor, no weights"):
        load_network(str(tmp_path / "w.pt"), key="generator.fc.weight")
    with pytest.raises(UserError, match=r"--key names an entry of a file of torch.save"):
        load_network(str(save_safetensors(net, tmp_path)), key="generator")
    with pytest.raises(UserError, match="--key is for files of weights, timm:resnet18 names a network"):
        load_network("timm:resnet18", key="generator")
    torch.save({"optimizer": momentum(net)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="has no state dict: it holds optimizer"):
        load_network(str(tmp_path / "w.pt"))


def test_steps_of_hugging_face(tmp_path, net):
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = {name: value * (step > 9) for name, value in net.state_dict().items()}
        save_file(state, folder / "model.safetensors")
    source = load_network(str(tmp_path), "resnet8")
    assert "checkpoint-10" in source.title
    same_weights(source.model, net)


def test_the_newest_of_lightning(tmp_path, net):
    for i, name in enumerate(("b", "a")):
        torch.save({"state_dict": {"c.weight": torch.full((2, 2), float(i))}}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (i, i))
    source = load_network(str(tmp_path))
    assert "a.ckpt" in source.title
    assert filter_health(source.model).layers["c"].zero == 0


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
    with pytest.raises(UserError, match=r"pip install '\.\["):
        load_network(f"{library}:net", random=True)


def garbage(path):
    path.write_bytes(b"\x80\x02garbage")
    return path


def text(path):
    path.write_text("hello, I am no checkpoint\n" * 20)
    return path


def german(path):
    path.write_text("ü" * 511)  # whose 256th is cut in two
    return path


def nothing(path):
    path.touch()
    return path


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")
    return path


def array(path):
    np.save(path.with_suffix(".npy"), np.zeros(3))
    return path.with_suffix(".npy")


def renamed_npz(path):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    return path


def cut_off(path):
    torch.save({"a.weight": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:1000])
    return path


def renamed_safetensors(path):
    save_file({"a.weight": torch.zeros(3, 3)}, path)
    return path


def renamed_torch_file(path):
    torch.save({"a.weight": torch.zeros(3, 3)}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def scripted(path):
    # As torch.jit.save has it; to make one warns, with other words in each version.
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"jit/{name}", "3\n")
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


def other_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def seeds(path):
    for seed in (10, 2):
        (path / f"seed-{seed}").mkdir(parents=True)
    return path


def bad_safetensors(path):
    path = path.with_suffix(".safetensors")
    path.write_bytes(b"not really")
    return path


def bad_index(path):
    path = path.with_name("model.safetensors.index.json")
    path.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    return path


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (garbage, "not a file of torch.save or is damaged"),
        (text, r"is not a file of torch.save or is damaged \(it is a text\)"),
        (german, r"\(it is a text\)"),
        (nothing, r"\(it is empty\)"),
        (pointer, r"\(it is a Git LFS pointer .*git lfs pull"),
        (array, r"\(it is a NumPy array\)"),
        (cut_off, r"\(it is cut off after 1,000 bytes\)"),
        (renamed_npz, r"\(it is a zip archive of other files\)"),
        (renamed_safetensors, r"\(it is a safetensors file; name it \*\.safetensors\)"),
        (renamed_torch_file, r"is not a safetensors file or is damaged \(Error"),
        (scripted, r"is a TorchScript file .*save model.state_dict\(\) of the model that was scripted"),
        (a_list, "holds a list, no weights"),
        (only_numbers, "has no state dict: it holds epoch, config"),
        (no_layers, "no weight of a convolution or Linear"),
        (empty_folder, "file.pt is empty: none of .*; name a file"),
        (other_folder, "file.pt holds config.json: none of .*; name a file"),
        (seeds, "file.pt holds seed-2, seed-10; name one: .*seed-2"),
        (bad_safetensors, "not a safetensors file or is damaged"),
        (bad_index, "names a file outside of its folder"),
    ],
)
def test_other_files(tmp_path, make, message, trust):
    with pytest.raises(UserError, match=message) as raised:
        load_network(str(make(tmp_path / "file.pt")), trust_pickle=trust)
    assert "\n" not in str(raised.value)


def test_a_source_by_name_is_named_as_it_was_given():
    with pytest.raises(UserError, match=r"^os:getcwd must give a torch\.nn\.Module"):
        load_network("os:getcwd")
    with pytest.raises(UserError, match=r"--random is for timm:NAME and torchvision:NAME; got os:getcwd"):
        load_network("os:getcwd", random=True)


def test_a_network_needs_no_architecture(tmp_path, net):
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"--model is for files of weights, .* holds the network itself"):
        load_network(str(tmp_path / "net.pt"), "resnet8", trust_pickle=True)


def test_no_such_file():
    with pytest.raises(UserError, match="no such file; a network by name is timm:NAME"):
        load_network("nowhere.pt")
    with pytest.raises(UserError, match="--model is for files"):
        load_network("timm:resnet18", "resnet8")
