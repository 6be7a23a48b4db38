#!/bin/sh
# Makes $VENV with everything the project needs. Called by `make setup`.
set -eu

say() { printf '== %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || fail "no $PYTHON here; install Python 3.11 or later (Debian: apt-get install python3-venv) or set PYTHON="
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$PYTHON is $("$PYTHON" -V); Python 3.11 or later is needed; set PYTHON="
if [ ! -x "$VENV/bin/python" ]; then
    say "environment in $VENV"
    "$PYTHON" -m venv "$VENV" || fail "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
fi
PIP="$VENV/bin/python -m pip --disable-pip-version-check install -q"
say "$TORCH (several hundred megabytes where it must be fetched)"
if [ -n "$TORCH_INDEX_URL" ]; then
    $PIP --index-url "$TORCH_INDEX_URL" "$TORCH"
else
    $PIP "$TORCH"
fi
say "everything else"
$PIP "setuptools>=77,<82" wheel
$PIP --no-build-isolation -e ".[dev]"
say "ready"
