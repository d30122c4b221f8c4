#!/bin/sh
# Puts a program into .venv/bin for the tests that need it, where that is possible: from Debian's package, unpacked and
# not installed, so nothing is set up on the machine and no service is started.
# Where it cannot be had, the tests that need it are skipped and say so; this script then still succeeds.
#   get-tool.sh promtool prometheus usr/bin/promtool      (program, Debian's package, its path there)
set -eu
tool=$1 package=$2 path=$3

command -v "$tool" >/dev/null 2>&1 && exit 0
[ -x "/usr/sbin/$tool" ] && exit 0
[ -x ".venv/bin/$tool" ] && exit 0

skip() {
    echo "$tool: $1; the tests that need it will be skipped (Debian, Ubuntu: apt-get install $package)" >&2
    exit 0
}

command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || skip "not in PATH, and this is no Debian"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as a user of its own

download() { (cd "$work" && apt-get download -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$package") >/dev/null 2>&1; }

# A fresh container has no package lists; only root may fetch them.
download || { [ "$(id -u)" = 0 ] && apt-get update -qq -o Acquire::http::Timeout=20 >/dev/null 2>&1 && download; } ||
    skip "not in PATH, and apt could not download Debian's package $package"
dpkg-deb --extract "$work/$package"_*.deb "$work/unpacked"
mv "$work/unpacked/$path" ".venv/bin/$tool"
