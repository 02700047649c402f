"""What takes part while model and optimizer change: followed or refused, and never masked wrong."""

import copy
import os
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.utils import prune

from tests.asynchronous.twins import BATCHES, CONVS, backward, make_net, snapshot
from weight_evolution import AsynchronousSGD, AsynchronousUpdate

FORMS = ["hook", "sgd"]


def start(form, model, parameters=None, **options):
    """Optimizer and what holds the subsets."""
    parameters = list(model.parameters()) if parameters is None else parameters
    if form == "sgd":
        optimizer = AsynchronousSGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, model=model, **options)
        return optimizer, optimizer
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    return optimizer, AsynchronousUpdate(optimizer, model, **options)


def train(model, optimizer, batches=BATCHES):
    for batch in batches:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    return snapshot(model)


def check_step(model, optimizer, source, batch=BATCHES[0]):
    optimizer.zero_grad()
    backward(model, batch)
    before, selection = snapshot(model), source.selection()
    optimizer.step()
    after = snapshot(model)
    for name, mask in selection.items():
        dim = CONVS[name][1] if name in CONVS else 0
        new, old = (x[name].movedim(dim, 0) for x in (after, before))
        assert (new != old).flatten(1).any(1).tolist() == mask.tolist(), name
    return selection


def check_refused(model, optimizer, source, message, error=RuntimeError):
    """The next step raises and changes nothing."""
    optimizer.zero_grad()
    backward(model, BATCHES[0])
    before, count = snapshot(model), int(source._subsets.step)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert int(source._subsets.step) == count


@pytest.mark.parametrize("form", FORMS)
def test_pruned_or_normed_after_construction(form):
    model = make_net()
    optimizer, source = start(form, model)
    train(model, optimizer)
    prune.l1_unstructured(model.stem, "weight", 0.2)
    check_refused(model, optimizer, source, "stem.weight is computed from other parameters", TypeError)
    prune.remove(model.stem, "weight")  # the parameter that it was
    check_step(model, optimizer, source)
    model.stem.weight = nn.Parameter(model.stem.weight.detach().clone())
    message = r"stem\.weight was updated asynchronously and is now not among the optimizer's"
    check_refused(model, optimizer, source, message)
    optimizer.add_param_group({"params": [model.stem.weight]})
    check_step(model, optimizer, source)
    nn.utils.parametrizations.weight_norm(model.up)
    check_refused(model, optimizer, source, "up.weight is computed from other parameters", TypeError)


@pytest.mark.parametrize("form", FORMS)
def test_a_replaced_layer(form):
    model = make_net()
    optimizer, source = start(form, model)
    train(model, optimizer)
    old, model.grouped = model.grouped, nn.Conv2d(8, 6, 1, groups=2, bias=False)
    check_refused(model, optimizer, source, "grouped.weight was updated asynchronously and is now not among")
    model.grouped = old
    check_step(model, optimizer, source)
    model.grouped = nn.Conv2d(8, 6, 1, groups=2, bias=False)
    optimizer.add_param_group({"params": model.grouped.parameters()})
    assert list(check_step(model, optimizer, source)) == list(CONVS)
    model.up = nn.Upsample(scale_factor=2)
    with pytest.raises(
        RuntimeError, match=r"up\.weight was updated asynchronously and is now not in the model any more"
    ):
        source.selection()


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_gets_a_wrapper_is_followed(form):
    model = make_net()
    optimizer, source = start(form, model)
    model.stem = nn.Sequential(model.stem, nn.Identity())
    selection = check_step(model, optimizer, source)
    assert list(selection) == ["stem.0.weight", *list(CONVS)[1:]]


@pytest.mark.parametrize("form", FORMS)
def test_parameter_groups_that_are_added_later_take_part(form):
    """And draw what they would have drawn from the start."""
    model = make_net()
    optimizer, source = start(form, model, [*model.stem.parameters(), *model.up.parameters()])
    assert list(check_step(model, optimizer, source)) == ["stem.weight", "up.weight"]
    assert source.skipped["grouped.weight"] == "not among the optimizer's parameters"
    optimizer.add_param_group({"params": [model.depthwise.weight, model.grouped.weight]})
    selection = check_step(model, optimizer, source)
    assert list(selection) == list(CONVS)
    assert source.skipped == {}
    _, other = start(form, make_net())
    assert all(torch.equal(mask, selection[name]) for name, mask in other.selection(1).items())
    del optimizer.param_groups[1]
    check_refused(model, optimizer, source, "depthwise.weight was updated asynchronously and is now not among")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shard", [lambda w: w.flatten()[:7], lambda w: w.new_empty(0)], ids=["FSDP", "ZeRO-3"])
def test_shards_of_a_weight_are_refused(form, shard):
    model = make_net()
    optimizer, source = start(form, model)
    train(model, optimizer)
    for name in ("stem", "up"):
        weight = getattr(model, name).weight
        whole = weight.data
        weight.data, weight.grad = shard(whole), None
        before = weight.detach().clone()
        with pytest.raises(ValueError, match=rf"{name}.weight has shape .* but its Conv.* says"):
            optimizer.step()
        assert torch.equal(weight, before)
        with pytest.raises(ValueError, match=rf"{name}.weight has shape"):
            start(form, model)
        weight.data = whole
    check_step(model, optimizer, source)


def test_shards_of_weights_given_alone_are_refused():
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    optimizer = AsynchronousSGD([weight], lr=0.1, conv_weights=[weight])
    weight.data = weight.data.flatten()
    with pytest.raises(ValueError, match=r"conv_weights\[0\] must be \[N, C, \*kernel\], a whole weight, got shape"):
        optimizer.step()


@pytest.mark.parametrize("form", FORMS)
def test_a_square_weight_that_is_transposed_in_place(form):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 5))
    optimizer, source = start(form, model, rescale=True)
    images, targets = torch.randn(6, 4, 1, 1), BATCHES[0][1]
    check_step(model, optimizer, source, (images, targets))
    model[0].weight.data = model[0].weight.data.transpose(0, 1)
    check_step(model, optimizer, source, (images, targets))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("options", [{}, {"rescale": True, "select": "input_channels"}], ids=str)
def test_copies_of_all_go_on_alike(form, way, options):
    model = make_net()
    optimizer, source = start(form, model, rate=0.3, seed=5, **options)
    train(model, optimizer, BATCHES[:2])
    again, second, copied = way((model, optimizer, source))
    expected, before = train(model, optimizer, BATCHES[2:]), snapshot(again)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(again).items())
    found = train(again, second, BATCHES[2:])
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert copied.step_count == source.step_count == 4


def test_copies_of_parts():
    """Of the update alone: with an optimizer and a model of its own. Shallow: refused. Detached: detached."""
    model = make_net()
    optimizer, update = start("hook", model)
    with pytest.raises(ValueError, match="copy all at once"):
        copy.copy(update)
    before = snapshot(model)
    alone = copy.deepcopy(update)
    assert alone.step_count == 0
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    train(model, optimizer, BATCHES[:1])
    assert (update.step_count, alone.step_count) == (1, 0)
    update.detach()
    again, second, copied = copy.deepcopy((model, optimizer, update))
    train(again, second, BATCHES[:1])
    assert copied.step_count == 1
    AsynchronousUpdate(second, again)


@pytest.fixture
def mesh():
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_distributed_tensors_that_are_whole_on_every_rank(form, mesh):
    from torch.distributed.tensor import distribute_module

    model = distribute_module(make_net(), mesh)
    _, alone = start(form, make_net())
    _, replicated = start(form, model)
    for name, moves in alone.selection().items():
        assert torch.equal(replicated.selection()[name], moves)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_models_without_layers_are_refused_with_the_reason(form):
    with pytest.raises(ValueError, match="no convolution of the model to update: it is scripted or traced"):
        start(form, torch.jit.script(make_net()))
    exported = torch.export.export(make_net(), (BATCHES[0][0],)).module()
    with pytest.raises(ValueError, match="no convolution of the model to update: it is exported"):
        start(form, exported)
