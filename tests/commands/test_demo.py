import json

from navprune.commands import demo
from navprune.config import load_config

TINY = [
    "environments=2", "task.max_steps=20", "agent.visual_features=16", "agent.hidden_size=16",
    "warm_start.frames=64", "warm_start.batch=1", "warm_start.epochs=1", "ppo.minibatches=1", "ppo.epochs=1",
    "trainer.total_frames=128",
]  # fmt: skip


def test_the_demo_compares_four_agents_with_the_controls_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    homes = {"train": 1, "val": 1, "episodes_per_scene": 60, "val_episodes_per_scene": 3}
    monkeypatch.setattr(demo, "HOMES", {**demo.HOMES, **homes})
    monkeypatch.setattr(demo, "GATE_STEPS", 100)
    notes = []
    text, page, answer = demo.run_demo(tmp_path, load_config("demo", TINY), notes.append)
    names = [row["name"] for row in answer["rows"]]
    assert names == ["resnet50", "resnet50-pruned", "resnet18", "blind", "random", "goal-follower", "shortest-path"]
    costs = {row["name"]: row["cost"] for row in answer["rows"]}
    assert costs["resnet50-pruned"]["table1"]["macs_gi"] <= 0.488 * costs["resnet50"]["table1"]["macs_gi"] + 1e-4
    assert costs["blind"] is None
    assert answer["rows"][-1]["evaluation"]["measures"]["spl"]["mean"] > 0
    assert "resnet50-pruned" in page.read_text() and "resnet50-pruned" in text
    assert json.loads((tmp_path / "slim" / "pruning.json").read_text())["method"] == "gates"

    written = (tmp_path / "resnet18" / "latest" / "weights.safetensors").stat().st_mtime_ns
    again = []
    demo.run_demo(tmp_path, load_config("demo", TINY), again.append)
    assert not any("generating" in note or "pruning ResNet50" in note for note in again)
    assert (tmp_path / "resnet18" / "latest" / "weights.safetensors").stat().st_mtime_ns == written
