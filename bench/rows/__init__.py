"""The rows: one file each, with TITLE and run(options). A new row is a file here and its name in ROWS."""

ROWS = (
    "echo", "memory", "cold", "embed", "policy", "catalogue", "sharing", "churn", "noise", "pressure", "zipf",
    "overload",
)  # fmt: skip
