#!/bin/sh
# install.sh EXTRA: makes .venv and installs mcjepa with one extra (samples, test, dev or docs) into it, editable.
# Needs Python >= 3.11 with pip; no root, no compiler, no CUDA. Called by make, which knows when it is due.
set -eu
extra=${1:?usage: install.sh samples|test|dev|docs}
venv=${VENV:-.venv}
python=${PYTHON:-python3}

fail() { printf 'install: %s\n' "$*" >&2; exit 2; }
command -v "$python" >/dev/null || fail "no $python found, expected Python 3.11 or newer; on Debian: apt install python3 python3-pip"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
    || fail "$("$python" --version) found, expected 3.11 to 3.13; name one with PYTHON=python3.11"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; on Debian: apt install python3-pip"

# Debian splits ensurepip off into python3-venv; without it the venv is made bare and filled from outside.
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" 2>/dev/null || { rm -rf "$venv"; "$python" -m venv --without-pip "$venv"; }
fi
pip() { "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check "$@"; }

# torch: where pip is told of a folder of wheels, its CPU build is taken; elsewhere uv looks whether there is a GPU
# and picks the build for it. Plain pip, the last resort, takes PyPI's default.
links=${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}
if [ -n "$links" ]; then export UV_FIND_LINKS="$links"; unset UV_TORCH_BACKEND; else export UV_TORCH_BACKEND="${UV_TORCH_BACKEND:-auto}"; fi
unset PYTHONDONTWRITEBYTECODE

printf 'install: mcjepa[%s] into %s, one to three minutes\n' "$extra" "$venv" >&2
if [ -x "$venv/bin/uv" ] || pip install --quiet uv 2>/dev/null; then
    if "$venv/bin/uv" pip install --python "$venv/bin/python" --quiet --compile-bytecode \
        -c requirements.lock -e ".[$extra]"; then
        exit 0
    fi
    printf 'install: uv could not, trying pip\n' >&2
fi
pip install --quiet -c requirements.lock -e ".[$extra]" \
    || fail "pip could not install the packages; its message is above (no connection, or a full disk?)"
