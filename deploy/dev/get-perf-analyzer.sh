#!/bin/sh
# Puts NVIDIA's perf_analyzer into .venv/bin for the tests that need it. The program comes in tritonclient's older wheels
# for Linux on x86-64; what it is linked with comes from PyPI (CUDA's runtime, for the name alone: it is not called) and
# from Debian's package libb64, unpacked and not installed.
# Where it cannot be had, the tests that need it are skipped and say so; this script then still succeeds.
set -eu
program=tritonclient==2.50.0
cudart=nvidia-cuda-runtime-cu12==12.9.79

[ -x .venv/bin/perf_analyzer ] && exit 0

skip() {
    echo "perf_analyzer: $1; the tests that need it will be skipped" >&2
    exit 0
}

[ "$(uname -sm)" = "Linux x86_64" ] || skip "is there for Linux on x86-64 alone"
command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || skip "needs Debian's package libb64-0d"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as a user of its own

deb() { (cd "$work" && apt-get download -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 libb64-0d) >/dev/null 2>&1; }
wheel() {
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$@" \
        --dest "$work" >/dev/null 2>&1
}
unpack() { .venv/bin/python -m zipfile --extract "$work/$1"*.whl "$work/$1"; }

# A fresh container has no package lists; only root may fetch them.
deb || { [ "$(id -u)" = 0 ] && apt-get update -qq -o Acquire::http::Timeout=20 >/dev/null 2>&1 && deb; } ||
    skip "apt could not download Debian's package libb64-0d"
wheel "$program" --platform manylinux1_x86_64 && wheel "$cudart" || skip "pip could not download $program or $cudart"
dpkg-deb --extract "$work"/libb64-0d_*.deb "$work/deb"
unpack tritonclient
unpack nvidia_cuda_runtime

libs=.venv/lib/perf_analyzer
mkdir -p "$libs"
find "$work/deb" "$work/nvidia_cuda_runtime" \( -name 'libb64.so*' -o -name 'libcudart.so*' \) -exec cp -P {} "$libs" \;
find "$work/tritonclient" -name perf_analyzer -exec cp {} "$libs/perf_analyzer" \;
chmod +x "$libs/perf_analyzer"
cat >.venv/bin/perf_analyzer <<'WRAPPER'
#!/bin/sh
libs=$(dirname "$0")/../lib/perf_analyzer
LD_LIBRARY_PATH="$libs" exec "$libs/perf_analyzer" "$@"
WRAPPER
chmod +x .venv/bin/perf_analyzer
