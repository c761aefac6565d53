"""What was ingested: a ledger that is the truth, and a vector index derived from it."""
