"""A sweep's files: its ledger (the event log of the sweep), the lease on it, and everything that is read back from them."""
