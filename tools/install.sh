#!/usr/bin/env bash
# Builds the package and installs it into the environment FOLDER: `install.sh FOLDER LOG`. Shows the compiler's steps; all else is in LOG.
set -euo pipefail
if ! "$1/bin/python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps --no-index --force-reinstall -v . </dev/null 2>&1 |
  tee "$2" | sed -un 's|^ *\(\[[0-9]*/[0-9]*\]\)|\1|p'; then
  grep -nE 'error|FAILED' "$2" | head -40 || true
  echo "The build failed; $2 holds everything." >&2
  exit 1
fi
