#!/bin/sh
# Builds the wheel in which the way of a request is compiled (setup.py says what and why) into dist/, and lays it out in
# build/compiled, from where `PYTHONPATH=build/compiled foldserve` runs it beside the editable install of .venv.
# Does nothing when both are there and made from the sources as they are. Needs .venv and a C compiler.
set -eu

made_from=$(find setup.py pyproject.toml constraints.txt README.md foldserve service models -type f ! -name '*.pyc' -exec cksum {} + | sort | cksum)
[ "$(cat build/compiled/made-from 2>/dev/null)" = "$made_from" ] && ls dist/foldserve-*-linux_*.whl >/dev/null 2>&1 && exit 0

command -v cc >/dev/null 2>&1 || {
    echo "no C compiler was found in PATH; install one (Debian, Ubuntu: apt-get install gcc libc6-dev)," \
        "or use foldserve as .venv has it, which runs the same sources without compiling them" >&2
    exit 1
}

echo "compiling the wheel; a minute"
rm -rf build/compiled dist/foldserve-*.whl
COMPILE_FOLDSERVE=1 .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps \
    --no-build-isolation --wheel-dir dist .
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target build/compiled \
    dist/foldserve-*.whl
echo "$made_from" >build/compiled/made-from
