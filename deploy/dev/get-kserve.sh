#!/bin/sh
# Puts KServe's Python client into .venv/lib/kserve for the tests that need it (with that folder in PYTHONPATH): it needs a
# gRPC and packages that do not go with the pins of constraints.txt. What of its needs .venv has is not fetched again.
# Where it cannot be had, the tests that need it are skipped and say so; this script then still succeeds.
set -eu
folder=.venv/lib/kserve

[ -e "$folder/kserve" ] && exit 0

trap 'rm -rf "$folder.part"' EXIT
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: --target "$folder.part" \
    kserve==0.21.0 cloudevents==1.13.0 deprecation==2.1.0 durationpy==0.11 grpcio==1.85.3 grpcio-tools==1.81.1 \
    grpc-interceptor==0.15.4 kubernetes==37.0.1 oauthlib==4.0.1 pandas==2.3.3 psutil==5.9.8 python-multipart==0.0.34 \
    pytz==2026.6 requests-oauthlib==2.0.0 six==1.17.0 tabulate==0.10.0 timing-asgi==0.3.2 websocket-client==1.9.2 \
    >/dev/null 2>&1 || {
    echo "kserve: pip could not install it; the tests that need it will be skipped" >&2
    exit 0
}
rm -rf "$folder"
mv "$folder.part" "$folder"
