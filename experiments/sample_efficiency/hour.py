"""SPL in unseen homes over minutes and frames: evaluates all checkpoints of runs, and draws two figures of hour.jsonl.

    .venv/bin/python experiments/sample_efficiency/hour.py [NAME=RUN | NAME=RUN@RATE | NAME=RUN@RATE,RATE ...]

Minutes are those of two cores: of a run's wall time, by as many cores as it had workers; or, of a run that had to share
its core with other work, by the rates in frames/s that two cores have of it, of the warm start and of PPO where there
are both. What is evaluated already is not evaluated again. Prints each run's last SPL in the homes that it knows.
"""

import json
import sys
from pathlib import Path

import numpy as np

from navprune.commands.environments import environment, split_episodes
from navprune.commands.evaluate import run_evaluation
from navprune.config import Config, load_config
from navprune.errors import UserError
from navprune.evaluation.agents import PolicyAgent
from navprune.evaluation.evaluate import evaluate
from navprune.reports.plots import Curve, plot_learning_curves, read_curve
from navprune.rl.checkpoints import checkpoint_folder, load_policy, numbered
from navprune.tasks.orders import Once

HERE = Path(__file__).parent
ROWS = HERE / "hour.jsonl"


def main() -> None:
    """Evaluate, append, draw."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {(row["name"], row["frames"]) for row in rows}
    for text in sys.argv[1:]:
        name, _, place = text.partition("=")
        place, _, rates = place.partition("@")
        run = Path(place)
        config = load_config(f"{run}/latest/config.yaml")
        for frames in sorted(numbered(run)):
            if (name, frames) in done:
                continue
            row = {"name": name, "frames": frames, "minutes": round(minutes(run, config, frames, rates), 2)}
            source = str(checkpoint_folder(run, frames))
            for way in ("sampled", "greedy"):
                result, _ = run_evaluation(source, config, environments=64, greedy=way == "greedy")
                row[way] = {key: result.measures[key] for key in ("spl", "success", "collisions")}
            rows.append(row)
            with ROWS.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        print(name, at_home(run, config))
    curves = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["frames"])
        at, seconds = np.array([row["frames"] for row in own]), np.array([60 * row["minutes"] for row in own])
        curves[name] = Curve(at, seconds, np.array([row["sampled"]["spl"]["mean"] for row in own]))
    for by in ("seconds", "frames"):
        plot_learning_curves(HERE / f"hour_{by}.png", curves, by=by)


def at_home(run: Path, config: Config) -> dict[str, float]:
    """SPL of a run's latest agent, and its interval, in four episodes of each home that it was trained in."""
    episodes = split_episodes(config, config.data.train)
    episodes = episodes[:: len(episodes) // (4 * len(episodes.scenes))]
    env = environment(config, config.data.train, episodes, Once(len(episodes)), 48)
    result = evaluate(env, PolicyAgent(load_policy(run / "latest").policy, False), episodes)
    env.close()
    return {key: round(value, 3) for key, value in result.measures["spl"].items()}


def minutes(run: Path, config: Config, frames: int, rates: str) -> float:
    """Of two cores, which a run took to see so many frames."""
    if not rates:
        if not config.trainer.workers:
            raise UserError(f"{run} does not say how many cores it had; train with trainer.workers=N")
        seen = read_curve(run / "tensorboard", "perf/fps")
        return float(np.interp(frames, seen.frames, seen.seconds)) / 60 * config.trainer.workers / 2
    first, *_, last = 2 * [float(rate) for rate in rates.split(",")]
    warm = min(frames, config.warm_start.frames) if config.warm_start else 0
    return (warm / first + (frames - warm) / last) / 60


if __name__ == "__main__":
    main()
