#!/usr/bin/env bash
# Makes the environment FOLDER with everything that building, testing and comparing needs: `setup.sh FOLDER`.
set -euo pipefail
folder=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "foveate needs Python 3.11 or newer; PYTHON=... names one" >&2; exit 1; }
[ -x "$folder/bin/python" ] || { echo "Making $folder"; "$python" -m venv "$folder"; }

pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$folder/bin/python" -m pip "$@" </dev/null; }
echo "Installing torch"
pip install --quiet -r requirements-torch.txt
if ! "$folder/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  echo "The torch in $folder is built for CUDA, and building against it takes a CUDA toolkit. The CPU build is enough:" \
       "let pip find it (PIP_INDEX_URL or PIP_FIND_LINKS), remove $folder, and try again." >&2
  command -v nvcc >/dev/null || exit 1
fi
echo "Installing what is pinned in requirements.txt"
pip install --quiet --no-deps -r requirements.txt
