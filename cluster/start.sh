#!/usr/bin/env bash
# Starts Ray on a machine of the cluster, with the settings that all ways of starting it share:
#
#   cluster/start.sh STORAGE ray start --head [more options]                    also starts MLflow
#   cluster/start.sh STORAGE ray start --address=HEAD:6379 [more options]
#
# STORAGE is the folder that all machines share. Ray and the project are in ~/venv, the token in ~/.ray/auth_token.
# MLFLOW_PORT (default 5000) is MLflow's port on the head.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
storage=$1 port=${MLFLOW_PORT:-5000}
shift
if ! [ -w "$storage" ]; then
  echo "$storage is not there or can't be written to: mount the folder that all machines share" >&2
  exit 1
fi

# What jobs, `ray exec`, `ray submit` and `ray attach` find set. Without RAY_AUTH_MODE a head starts open to anyone who
# reaches it. Never PYTHONPATH here: it would hide the code that a job brings along.
cat > ~/.leebert-env <<END
export PATH=\$HOME/venv/bin:\$PATH
export RAY_AUTH_MODE=token
export LEEBERT_STORAGE=$storage
export MLFLOW_TRACKING_URI=http://127.0.0.1:$port
END
grep -qs leebert-env ~/.bashrc || echo '. ~/.leebert-env' >> ~/.bashrc
. ~/.leebert-env
chmod 600 ~/.ray/auth_token  # Ray makes it readable to all
ulimit -n "$(ulimit -Hn)"

if [[ " $* " == *" --head "* ]]; then
  # A lost machine is noticed after threshold x (timeout + period) = 4.4 s instead of a minute, so its trials soon go on elsewhere.
  # A machine under full load still answers within milliseconds; on a network that stalls for seconds, raise the threshold.
  export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=1200 RAY_health_check_failure_threshold=2

  # MLflow and the dashboard listen on the head itself only, where the drivers of sweeps run: from elsewhere through ssh.
  # MLflow's database is on the head's disk, as SQLite and NFS don't go together.
  if ! (exec 3<> /dev/tcp/127.0.0.1/$port) 2> /dev/null; then
    MLFLOW_SERVER_ALLOWED_HOSTS='localhost:*,127.0.0.1:*' PYTHON=$HOME/venv/bin/python \
      setsid nohup "$checkout/mlflow/serve.sh" ~/mlflow-data >> ~/mlflow.log 2>&1 < /dev/null &
  fi

  # No trial runs on the head: a busy head answers late, and then machines look lost.
  set -- "$@" --port=6379 --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1
else
  # A machine that the head has given up ends its trials soon too, instead of holding its GPU for a minute.
  export RAY_gcs_rpc_server_reconnect_timeout_s=10
fi
exec "$@" --object-manager-port=8076 --disable-usage-stats
