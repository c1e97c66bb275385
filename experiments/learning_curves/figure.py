"""Draws curve.png: SPL of the training episodes over wall time, from the runs that run.sh made."""

from pathlib import Path

from navprune.reports.plots import plot_learning_curves, read_curve

HERE, RUNS = Path(__file__).parent, Path("runs/learning_curves")
NAMES = {"ppo": "PPO alone", "warm_start": "warm start, then PPO"}

curves = {name: read_curve(RUNS / run / "tensorboard", "metrics/spl") for run, name in NAMES.items()}
plot_learning_curves(HERE / "curve.png", curves, by="seconds", smoothing=5)
