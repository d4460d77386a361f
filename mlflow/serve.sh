#!/usr/bin/env bash
# Starts an MLflow tracking server for sweeps:   mlflow/serve.sh [FOLDER]     (default: ./mlflow-data)
#
# From the environment:
#   MLFLOW_BACKEND_STORE_URI     database (default: sqlite:///FOLDER/mlflow.db); for PostgreSQL postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE
#   MLFLOW_ARTIFACTS_DESTINATION where files go (default: FOLDER/artifacts); for S3 s3://BUCKET/PREFIX
#   MLFLOW_HOST, MLFLOW_PORT     default 127.0.0.1 and 5000: reachable from this machine only
#   MLFLOW_SERVER_ALLOWED_HOSTS  Host headers to answer, each with its port, such as "localhost:*,10.0.0.5:5000"
#   MLFLOW_APP_NAME              "basic-auth" asks for user and password (needs `pip install 'mlflow[auth]'`), with
#   MLFLOW_FLASK_SERVER_SECRET_KEY and, at its first start, MLFLOW_AUTH_ADMIN_PASSWORD
#   PYTHON                       the Python that has MLflow (default: python)
# The database's address is passed by the environment, because any user of the machine can read passwords on command lines.
set -euo pipefail

python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
folder=${1:-mlflow-data}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}
export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1} MLFLOW_PORT=${MLFLOW_PORT:-5000}

# The server's job runner is only for language-model features (judges, gateways) and takes eight processes and 600 MB.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}
# No usage reports to MLflow's makers. Set it to false to send them.
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}

# The worker has 40 threads, and a request may need two database connections. With SQLAlchemy's limit of 15, 32 sweeps block
# each other until their requests fail after 30 s. PostgreSQL's default limit is 100.
export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=${MLFLOW_SQLALCHEMYSTORE_POOL_SIZE:-20}
export MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=${MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW:-60}

# MLflow creates some files relative to its working directory (the user database of basic-auth): keep them with the data.
cd "$folder"

# Create the tables of a new database in one process that holds a lock, before the server starts: two processes at a new SQLite
# file break each other's migration ("duplicate column name", "table already exists"). If two machines start with a new
# PostgreSQL database, one creates the tables and the other ends with an error; start it again. An old database is never
# migrated automatically: back it up, then run `mlflow db upgrade`.
(
  flock 9
  "$python" -c "import os; from mlflow import MlflowClient; MlflowClient(os.environ['MLFLOW_BACKEND_STORE_URI'])"
) 9>"$folder/.lock"

# One worker: with several, uvicorn leaves Nagle's algorithm on, and each request on an open connection waits 40 ms for a delayed
# acknowledgement (measured per report: 60 ms with the default 4 workers, 14 ms with 1). One worker handles about 70 reports a
# second; a sweep sends a few.
exec "$python" -m mlflow server --workers 1 ${MLFLOW_APP_NAME:+--app-name "$MLFLOW_APP_NAME"}
