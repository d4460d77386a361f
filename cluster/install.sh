#!/usr/bin/env bash
# Installs the project on a machine of the cluster into ~/venv, at exactly the versions of the checkout that lies there.
set -euo pipefail
cd "$(dirname "$0")/.."

# Ray refuses machines with another Python, so each needs 3.11.
[ -x ~/venv/bin/python ] || python3.11 -m venv ~/venv
~/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt '.[cluster]'
