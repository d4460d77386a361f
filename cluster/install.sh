#!/usr/bin/env bash
# Installs the project into ~/venv on a machine of the cluster, at the pinned versions: from the checkout or, if these files were
# copied out of the package (`leebert-tune spaces --copy cluster .`), from the wheel beside them.
set -euo pipefail
cd "$(dirname "$0")/.."

# Ray rejects machines with another Python version.
[ -x ~/venv/bin/python ] || python3.11 -m venv ~/venv
if [ -f pyproject.toml ]; then
  project=.
else
  wheels=(leebert_sweep-*.whl)
  project=${wheels[0]}
  if ! [ -f "$project" ]; then
    echo "$PWD contains neither a checkout nor a wheel: put leebert_sweep-VERSION-py3-none-any.whl there" >&2
    exit 1
  fi
  if [ ${#wheels[@]} -gt 1 ]; then
    echo "$PWD contains several wheels (${wheels[*]}): keep only the one to install" >&2
    exit 1
  fi
fi
~/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "${project}[cluster]"
