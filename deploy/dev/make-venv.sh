#!/bin/sh
# Makes .venv in the current folder with everything a developer needs, every version pinned by constraints.txt.
# Called by `make install`, which skips it when nothing has changed. Needs the network for what is not installed
# yet, and for nothing else. PYTHON=/path/to/python3 chooses the interpreter.
set -eu

usable() { # $1 = an interpreter: new enough, and able to make an environment with pip in it
    [ "$("$1" -c 'import sys, venv, ensurepip; print(sys.version_info >= (3, 11))' 2>/dev/null)" = True ]
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" && { echo "$PYTHON"; return; }
        echo "PYTHON=$PYTHON is not a Python 3.11 or newer with the venv and ensurepip modules." >&2
        return 1
    fi
    # 3.11 first: the pins in constraints.txt were resolved and tested with it.
    for python in python3.11 python3 python3.12 python3.13 python3.14; do
        usable "$python" && { echo "$python"; return; }
    done
    echo "No Python 3.11 or newer with the venv and ensurepip modules was found in PATH" \
        "(python3 is: $(python3 --version 2>&1 || true))." >&2
    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name one:" \
        "make install PYTHON=/path/to/python3" >&2
    return 1
}

# An environment that was cut off half-way has no pip; one of another Python cannot be mended. Both are made anew.
if ! usable .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt "$@"
}

echo "installing into .venv; the first time takes some minutes"
# torch by itself and first, so that a build for this machine that pip is configured to find (a CPU-only one, say)
# is taken for the pinned version before anything else asks for torch.
pip_install setuptools torch
# What an earlier build left beside the sources names the entry points of then, and is found before the new ones.
rm -rf foldserve.egg-info
# Without build isolation the pinned setuptools builds foldserve, and a later run needs no network.
pip_install --no-build-isolation --editable '.[export,grpc,demo,test,docs]'
