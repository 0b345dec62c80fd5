#!/usr/bin/env bash
# Write the lock files anew from pyproject.toml: one for each set of packages and each Python that hosts have.
#
# uv resolves for the target, not for the interpreter that runs it: markers such as python_version < '3.11.3' hold
# on Debian 12 and not on a controller with a newer 3.11. The versions are the oldest that a release ships.
# Usage: requirements/lock.sh [--upgrade]     (any further options go to `uv pip compile`)
set -euo pipefail
cd "$(dirname "$0")/.."

uv="${UV:-.venv/bin/uv}"
pythons=(3.11.2 3.12.3 3.13.0) # Debian 12, Ubuntu 24.04, Debian 13

lock() { # lock OUTPUT PYTHON OPTION...
  local output=$1 python=$2
  shift 2
  "$uv" pip compile --quiet --python-version "$python" --python-platform x86_64-manylinux_2_28 \
    --only-binary :all: --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    --override <(echo "torch; sys_platform == 'never'") --output-file "$output" "$@"
  echo "$output: $(grep -c == "$output") packages"
}

for python in "${pythons[@]}"; do
  tag=py$(cut -d. -f1,2 <<<"$python" | tr -d .)
  # The worker set contains the control set: a host that is in both groups takes it. The control set is cut from it,
  # so that no package has two versions in one cluster.
  lock "requirements/worker-$tag.txt" "$python" --extra worker --extra control --extra s3 \
    pyproject.toml requirements/torch.in "$@"
  lock "requirements/control-$tag.txt" "$python" --extra control --extra s3 \
    --constraint "requirements/worker-$tag.txt" pyproject.toml "$@"
done
