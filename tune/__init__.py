"""The search system around :mod:`leebert`: sweeps by Ray Tune, a ledger of every result, MLflow fed from it."""
