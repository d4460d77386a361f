#!/usr/bin/env bash
# Starts Ray on a machine of the cluster, with the settings common to all ways of starting it:
#
#   cluster/start.sh STORAGE ray start --head [more options]                    also starts MLflow
#   cluster/start.sh STORAGE ray start --address=HEAD:6379 [more options]
#
# STORAGE is the shared folder. Ray and the project are in ~/venv, the token in ~/.ray/auth_token.
# MLFLOW_PORT (default 5000) is MLflow's port on the head.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
storage=$1 port=${MLFLOW_PORT:-5000}
shift
if ! [ -w "$storage" ]; then
  echo "$storage is missing or not writable: mount the shared folder" >&2
  exit 1
fi

# Environment of jobs, `ray exec`, `ray submit` and `ray attach`. Without RAY_AUTH_MODE the head has no authentication. Do not
# set PYTHONPATH here: it would hide the code that a job brings along.
cat > ~/.leebert-env <<END
export PATH=\$HOME/venv/bin:\$PATH
export RAY_AUTH_MODE=token
export LEEBERT_STORAGE=$storage
export MLFLOW_TRACKING_URI=http://127.0.0.1:$port
END
grep -qs leebert-env ~/.bashrc || echo '. ~/.leebert-env' >> ~/.bashrc
. ~/.leebert-env
chmod 600 ~/.ray/auth_token  # Ray creates it readable by all
ulimit -n "$(ulimit -Hn)"

if [[ " $* " == *" --head "* ]]; then
  # Detect a lost machine after threshold x (timeout + period) = 4.4 s instead of a minute, so its trials resume elsewhere soon.
  # A machine under full load answers within milliseconds. If the network stalls for seconds, raise the threshold.
  export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=1200 RAY_health_check_failure_threshold=2

  # MLflow and the dashboard listen on the head only, where drivers run; use ssh from elsewhere. MLflow's database is on the
  # head's disk, because SQLite does not work over NFS.
  if ! (exec 3<> /dev/tcp/127.0.0.1/$port) 2> /dev/null; then
    MLFLOW_SERVER_ALLOWED_HOSTS='localhost:*,127.0.0.1:*' PYTHON=$HOME/venv/bin/python \
      setsid nohup "$checkout/mlflow/serve.sh" ~/mlflow-data >> ~/mlflow.log 2>&1 < /dev/null &
  fi

  # The head runs no trials: a busy head answers late, and machines then look lost.
  set -- "$@" --port=6379 --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1
else
  # A machine that lost the head ends its trials soon, instead of holding its GPU for a minute.
  export RAY_gcs_rpc_server_reconnect_timeout_s=10
fi
exec "$@" --object-manager-port=8076 --disable-usage-stats
