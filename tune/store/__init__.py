"""What a sweep leaves on disk: its ledger, who may write it, and what is read back from it."""
