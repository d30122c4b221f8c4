#!/bin/sh
# Checks that the commit at hand is a release, and builds what is published of it into dist/: docs/releasing.md.
# Refuses before it builds anything. Needs .venv, git and a C compiler.
set -eu

refuse() {
    echo "no release: $1" >&2
    exit 1
}

version=$(.venv/bin/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
section=$(awk -v head="## [$version]" 'index($0, "## [") == 1 { inside = index($0, head) == 1 } inside' CHANGELOG.md)
unreleased=$(awk 'index($0, "## [") == 1 { inside = $0 == "## [Unreleased]"; next } inside && /^-/' CHANGELOG.md)

[ -z "$(git status --porcelain)" ] || refuse "files differ from the commit or are not in it; commit them or take them away: git status"
[ -n "$section" ] || refuse "CHANGELOG.md has no section of $version, the version in pyproject.toml; name the section Unreleased '## [$version] - $(date +%F)'"
echo "$section" | head -n 1 | grep -Eq ' - [0-9]{4}-[0-9]{2}-[0-9]{2}$' || refuse "the section of $version in CHANGELOG.md has no date; expected '## [$version] - YYYY-MM-DD'"
[ -z "$unreleased" ] || refuse "CHANGELOG.md has lines under Unreleased; they belong to $version, or to a later commit"
git tag --points-at HEAD | grep -qxF "v$version" || refuse "this commit has no tag v$version; git tag --sign v$version --message 'foldserve $version'"

rm -rf dist
sh deploy/dev/make-wheel.sh
COMPILE_FOLDSERVE=0 .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps \
    --no-build-isolation --wheel-dir dist .
(cd dist && sha256sum foldserve-*.whl)
echo
echo "$section"
