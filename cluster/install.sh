#!/usr/bin/env bash
# Installs the project on a machine of the cluster into ~/venv, at exactly the versions of the checkout that lies there, or,
# where these files were copied out of the package (`leebert-tune spaces --copy cluster .`), of the wheel beside them.
set -euo pipefail
cd "$(dirname "$0")/.."

# Ray refuses machines with another Python, so each needs 3.11.
[ -x ~/venv/bin/python ] || python3.11 -m venv ~/venv
if [ -f pyproject.toml ]; then
  project=.
else
  wheels=(leebert_sweep-*.whl)
  project=${wheels[0]}
  if ! [ -f "$project" ]; then
    echo "$PWD holds neither the checkout nor a wheel: put leebert_sweep-VERSION-py3-none-any.whl there" >&2
    exit 1
  fi
  if [ ${#wheels[@]} -gt 1 ]; then
    echo "$PWD holds several wheels (${wheels[*]}): leave the one that is to be installed" >&2
    exit 1
  fi
fi
~/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "${project}[cluster]"
