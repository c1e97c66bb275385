#!/bin/sh
# Builds a wheel, installs it by itself and loads a recipe from it: `tests/scripts/wheel.sh [PYTHON]`, PYTHON having the dependencies.
set -eu
checkout=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-$checkout/.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git -C "$checkout" ls-files -z | (cd "$checkout" && xargs -0 cp --parents -t "$folder" --)
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheel" "$folder"
"$python" -m pip install --quiet --no-deps --target "$folder/installed" "$folder"/wheel/*.whl
ls "$folder/installed"
test ! -e "$folder/installed/habitat_configs"
cd "$folder/installed"
"$python" - <<'PROGRAM'
from pathlib import Path

import navprune
from navprune.config import load_config, recipes

assert Path(navprune.__file__).is_relative_to(Path.cwd()), navprune.__file__
assert "pointnav_gibson" in recipes()
print(load_config("pointnav_gibson", ["agent=blind"]).agent)
PROGRAM
