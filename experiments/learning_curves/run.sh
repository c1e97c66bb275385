#!/usr/bin/env bash
# PPO alone against warm start plus PPO at equal wall time, side by side, one core each. Run from the repository's root.
set -euo pipefail
seconds=${1:-900}
out=runs/learning_curves
here=experiments/learning_curves
navprune=.venv/bin/navprune
[ -d $out/data ] || $navprune scenes generate --out $out/data --train 40 --val 10 --seed 1 --val-episodes 20

# Ctrl-C is how a run is stopped: it writes a checkpoint.
train() { taskset -c "$1" timeout --signal=INT --kill-after=120 "$seconds" $navprune train --config $here/agent.yaml "${@:2}" || [ $? -eq 124 ]; }
train 0 run=$out/ppo &
train 1 run=$out/warm_start warm_start.frames=60000 warm_start.steps=16 warm_start.sequence=16 \
    warm_start.batch=32 warm_start.epochs=6 warm_start.lr=2e-3 ppo.critic_updates=6 &
wait

for run in ppo warm_start; do
    $navprune evaluate $out/$run/latest --json $here/$run.json --out $out/$run/evaluation
done
.venv/bin/python $here/figure.py
