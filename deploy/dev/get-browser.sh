#!/bin/sh
# Puts a browser without windows (Debian's chromium-headless-shell) into .venv/bin for the tests of the page at /docs: its
# package and those that it needs and this machine lacks, unpacked and not installed.
# Where it cannot be had, the tests that need it are skipped and say so; this script then still succeeds.
set -eu
program=chromium-headless-shell

command -v "$program" >/dev/null 2>&1 && exit 0
command -v chromium >/dev/null 2>&1 && exit 0
[ -x ".venv/bin/$program" ] && exit 0

skip() {
    echo "$program: $1; the tests that need a browser will be skipped (Debian: apt-get install chromium)" >&2
    exit 0
}

command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || skip "not in PATH, and this is no Debian"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as a user of its own

needed() { apt-get install --simulate --no-install-recommends "$program" 2>/dev/null | awk '/^Inst / {print $2}'; }
download() {
    packages=$(needed)
    [ -n "$packages" ] &&
        (cd "$work" && apt-get download -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 $packages) >/dev/null 2>&1
}

# A fresh container has no package lists; only root may fetch them.
download || { [ "$(id -u)" = 0 ] && apt-get update -qq -o Acquire::http::Timeout=20 >/dev/null 2>&1 && download; } ||
    skip "not in PATH, and apt could not download Debian's package $program"
unpacked=.venv/lib/$program
rm -rf "$unpacked"
mkdir -p "$unpacked"
for package in "$work"/*.deb; do dpkg-deb --extract "$package" "$unpacked"; done
cat >".venv/bin/$program" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$0")/../lib/chromium-headless-shell
libraries=$(find "$root/usr/lib" "$root/lib" -name '*.so*' -printf '%h\n' 2>/dev/null | sort -u | tr '\n' ':')
LD_LIBRARY_PATH=$libraries exec "$root/usr/lib/chromium/chromium-headless-shell" "$@"
WRAPPER
chmod +x ".venv/bin/$program"
