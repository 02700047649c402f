# %% [markdown]
# # Diagnose a network, treat it, look again
#
# A small network learns 500 images of digits whose labels are drawn anew, task after task. Its units stop firing, and
# it learns less and less. We look at what is wrong, let dead units start anew while training goes on, and look again.
# `make notebook` runs this; the source is `docs/notebooks/diagnose.py`.

# %%
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from weight_evolution import UnitAdamW, UnitReactivation, filter_health

torch.manual_seed(0)
images = torch.tensor(load_digits().data[:500], dtype=torch.float32) / 16
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

# %% [markdown]
# ## A network that loses units
#
# Ten tasks of 30 epochs, with Adam at a learning rate that is too large. For each task: the accuracy on its labels in
# the end. Chance is 10 %, and labels at random can only be learnt by heart.


# %%
def train(model, optimizer, tasks, reactivation=None, epochs=30):
    """The accuracy of each task."""
    random = torch.Generator().manual_seed(tasks.start)
    reached = []
    for _ in tasks:
        labels = torch.randint(10, (500,), generator=random)
        for _ in range(epochs):
            for batch in torch.randperm(500, generator=random).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                if reactivation:
                    reactivation.step()
        with torch.no_grad():
            reached.append((model(images).argmax(1) == labels).float().mean().item())
    return reached


optimizer = UnitAdamW(model.parameters(), lr=0.008, weight_decay=0)
print(*(f"{accuracy:.0%}" for accuracy in train(model, optimizer, range(10))))

# %% [markdown]
# ## Diagnose
#
# `filter_health` only reads the network. The images tell which units fire.

# %%
print(filter_health(model, [images]))

# %% [markdown]
# ## Treat
#
# Training goes on for ten tasks, from the same weights and with the same labels: once as before, once with
# `UnitReactivation`, which lets units that no longer fire start anew every ten iterations.

# %%
untreated = copy.deepcopy((model, optimizer))
reactivation = UnitReactivation(model, optimizer, every=10)
without, treated = train(*untreated, range(10, 20)), train(model, optimizer, range(10, 20), reactivation)
print("without:", *(f"{accuracy:.0%}" for accuracy in without))
print("treated:", *(f"{accuracy:.0%}" for accuracy in treated))

# %% [markdown]
# ## Look again

# %%
print(filter_health(model, [images]))

# %% [markdown]
# One seed, one learning rate, labels learnt by heart: this shows the mechanism, not how much you gain.
# `weight-evolution demo` compares the methods over five seeds, each at its best learning rate.
