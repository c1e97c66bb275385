#!/bin/sh
# Trains, evaluates, prunes and examines with package and home read-only: `tests/scripts/read_only.sh [PYTHON]`, as root on Linux.
set -eu
checkout=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-$checkout/.venv/bin/python}
if [ -z "${READ_ONLY:-}" ]; then
    READ_ONLY=$(mktemp -d) && export READ_ONLY
    trap 'rm -rf "$READ_ONLY"' EXIT
    unshare --mount "$0" "$python"
    exit
fi
mkdir -p "$READ_ONLY/package" "$READ_ONLY/home" "$READ_ONLY/temporary"
(cd "$checkout" && git ls-files -z navprune habitat_configs tests/data/reference | xargs -0 cp --parents -t "$READ_ONLY/package" --)
for place in package home; do
    mount --bind "$READ_ONLY/$place" "$READ_ONLY/$place"
    mount -o remount,ro,bind "$READ_ONLY/$place"
    if touch "$READ_ONLY/$place/x" 2>/dev/null; then echo "$place can be written" && exit 1; fi
done
export HOME="$READ_ONLY/home" TMPDIR="$READ_ONLY/temporary" PYTHONPATH="$READ_ONLY/package"
unset NAVPRUNE_SCENE_CACHE NUMBA_CACHE_DIR MPLCONFIGDIR XDG_CACHE_HOME XDG_CONFIG_HOME || true
runs="$READ_ONLY/temporary/runs"
navprune() { echo "+ navprune $*" && "$python" -m navprune.cli "$@"; }
cd /
tiny="data.folder=$READ_ONLY/package/tests/data/reference data.name=reference data.train=val task.width=32 task.height=32 task.max_steps=30
    agent.base_planes=4 agent.visual_features=16 agent.hidden_size=16 environments=2 ppo.steps=16 warm_start=null trainer.total_frames=64"
navprune doctor --data "$READ_ONLY/package/tests/data/reference" > "$READ_ONLY/temporary/doctor"
grep "compiled kernels.*NUMBA_CACHE_DIR" "$READ_ONLY/temporary/doctor"
grep "scene cache.*cannot be written.*NAVPRUNE_SCENE_CACHE" "$READ_ONLY/temporary/doctor"
# shellcheck disable=SC2086
navprune train --config pointnav_homes run="$runs/dense" $tiny
navprune evaluate "$runs/dense" --episodes 2 --pictures 1
navprune prune "$runs/dense" --method l1 --budget macs=0.6 --out "$runs/slim"
navprune compare "$runs/dense" --out "$runs/comparison" --split val --pictures 0
