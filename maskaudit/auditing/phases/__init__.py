"""What a look does, one file each: `run(state, rows)` on the correctly classified among its new points.

`rows` are rows of the ledger, int64 (n,). `maskaudit.auditing.runner` says in which order, and `search` what follows.
"""
