"""`weight-evolution inspect` on what these libraries really write."""

import json

import pytest

from weight_evolution.training import cli


def inspected(capsys, *arguments):
    assert cli.main(["inspect", *map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_by_name(capsys, library):
    pytest.importorskip(library)
    found = inspected(capsys, f"{library}:resnet18", "--random", "--num-classes", 7)
    assert found["totals"]["filters"] == 4800 + 7
    assert found["layers"]["fc"]["filters"] == 7
    assert cli.main(["inspect", f"{library}:resnet1818", "--random"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_of_transformers(capsys, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config)
    for name, shards in (("whole", "5GB"), ("shards", "10KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=shards)
        found = inspected(capsys, tmp_path / name)
        assert found["layers"]["bert.encoder.layer.1.intermediate.dense"]["shape"] == [32, 16]
        assert found["totals"]["filters"] == 2 * (5 * 16 + 32) + 16 + 2
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1


@pytest.mark.filterwarnings("ignore:.*(num_workers|logging interval):UserWarning", "ignore:.*LeafSpec:FutureWarning")
def test_a_checkpoint_of_lightning(capsys, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    torch = pytest.importorskip("torch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))

        def training_step(self, batch, index):
            return self.net(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(4, 1, 4, 4), 2))
    found = inspected(capsys, tmp_path)
    assert "Lightning" in found["source"]
    assert set(found["layers"]) == {"net.0", "net.2"}
