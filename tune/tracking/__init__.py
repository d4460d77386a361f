"""MLflow, fed from the ledger: runs, names, files, summaries and the saved views."""
