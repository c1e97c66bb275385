"""Prints results.jsonl as a table."""

import json
from pathlib import Path

HEAD = ("trial", "homes", "seed", "CPU s", "PPO's share", "k frames", "SPL sampled", "greedy", "success", "collisions")
print("|", " | ".join(HEAD), "|")
print("|---" * len(HEAD) + "|")
for line in (Path(__file__).parent / "results.jsonl").read_text().splitlines():
    trial = json.loads(line)
    sampled, greedy = trial["sampled"], trial["greedy"]
    settings = " ".join(trial["settings"]) or "-"
    settings += f", from {trial['begin']}" if trial.get("begin") else ""
    row = [f"{trial['name']}: {settings}", trial["homes"], trial["seed"], f"{trial['cpu_seconds']:.0f}"]
    row += [f"{1 - trial['share']:.2f}", trial["frames"] // 1000, f"{sampled['spl']:.3f}", f"{greedy['spl']:.3f}"]
    row += [f"{sampled['success']:.3f} / {greedy['success']:.3f}", f"{sampled['collisions']:.0f}"]
    print("|", " | ".join(map(str, row)), "|")
