#!/usr/bin/env bash
# Starts an MLflow tracking server for the sweeps:   mlflow/serve.sh [FOLDER]     (default: ./mlflow-data)
#
# From the environment:
#   MLFLOW_BACKEND_STORE_URI     database (default: sqlite:///FOLDER/mlflow.db); for PostgreSQL postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE
#   MLFLOW_ARTIFACTS_DESTINATION where files go (default: FOLDER/artifacts); for S3 s3://BUCKET/PREFIX
#   MLFLOW_HOST, MLFLOW_PORT     default 127.0.0.1 and 5000: only this machine can reach it
#   MLFLOW_SERVER_ALLOWED_HOSTS  Host headers to answer, each with its port, such as "localhost:*,10.0.0.5:5000"
#   MLFLOW_APP_NAME              "basic-auth" asks for user and password (needs `pip install 'mlflow[auth]'`), with
#   MLFLOW_FLASK_SERVER_SECRET_KEY and, at its first start, MLFLOW_AUTH_ADMIN_PASSWORD
#   PYTHON                       the Python that has MLflow (default: python)
# The database's address stays in the environment and off the command lines: there, any user of the machine could read its password.
set -euo pipefail

python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
folder=${1:-mlflow-data}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}
export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1} MLFLOW_PORT=${MLFLOW_PORT:-5000}

# The server's job runner serves language-model features (judges, gateways) only: eight processes and 600 MB that no sweep needs.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}
# No usage reports to MLflow's makers, from machines that may not reach the internet at all. Set it to false to send them.
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}

# The worker has 40 threads, and one request may take two connections to the database. SQLAlchemy's own limit of 15 lets 32 sweeps
# lock each other out, until after 30 s their requests are refused as wrong ones. PostgreSQL's default limit is 100.
export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=${MLFLOW_SQLALCHEMYSTORE_POOL_SIZE:-20}
export MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=${MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW:-60}

# What MLflow names relative to where it runs (its user database, with basic-auth) belongs to the data.
cd "$folder"

# A new database gets its tables here, by one process that holds a lock, before anybody can ask for anything: two processes that
# meet at a new SQLite file break each other's migration ("duplicate column name", "table already exists"). At a new PostgreSQL
# database, where two machines may meet, one makes the tables; the other ends with an error and is to be started again. An old
# database is never migrated by itself: back it up, then run `mlflow db upgrade`.
(
  flock 9
  "$python" -c "import os; from mlflow import MlflowClient; MlflowClient(os.environ['MLFLOW_BACKEND_STORE_URI'])"
) 9>"$folder/.lock"

# One worker, because with several uvicorn makes its sockets in a way that leaves Nagle's algorithm on: each request on a kept
# connection then waits 40 ms for a delayed acknowledgement (measured: 60 ms a report with the default 4 workers, 14 ms with 1).
# One worker takes some 70 reports a second; a sweep sends a few.
exec "$python" -m mlflow server --workers 1 ${MLFLOW_APP_NAME:+--app-name "$MLFLOW_APP_NAME"}
