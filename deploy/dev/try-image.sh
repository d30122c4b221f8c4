#!/bin/sh
# Builds the image and runs it for real on a Debian machine without a container engine or a registry, as root:
# buildah, podman and runc from Debian's packages, and a base image made with mmdebstrap that stands in for
# python:3.11-slim-bookworm, which has the C headers of its Python too. Where there is an engine, `docker build .` and
# `docker run` show the same.
#
#   apt-get install -y --no-install-recommends buildah podman runc catatonit mmdebstrap
#   make demo DEMO_EXIT=1                       # exports what the container serves
#   sh deploy/dev/try-image.sh                  # minutes the first time; leaves all it made under build/image
set -eu
cd "$(dirname "$0")/../.."

for tool in buildah podman runc mmdebstrap nsenter curl; do
    command -v "$tool" >/dev/null 2>&1 || { echo "try-image: $tool is missing; see the head of $0" >&2; exit 1; }
done
[ -d build/demo ] || { echo "try-image: build/demo is missing; run: make demo DEMO_EXIT=1" >&2; exit 1; }

work=$PWD/build/image
base=docker.io/library/python:3.11-slim-bookworm
image=localhost/foldserve:try
mkdir -p "$work"

# A graph root of our own, and limits that a root without CAP_SYS_RESOURCE may set.
cat >"$work/containers.conf" <<END
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
cat >"$work/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
END
export CONTAINERS_CONF="$work/containers.conf" CONTAINERS_STORAGE_CONF="$work/storage.conf"

if ! podman image exists "$base"; then
    mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
    mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-dev bookworm "$work/base.tar" "$mirror"
    podman import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' "$work/base.tar" "$base"
    rm "$work/base.tar"
fi

# --format docker keeps HEALTHCHECK, which OCI's format has no field for.
buildah bud --isolation chroot --network host --pull-never --format docker \
    --secret id=ca_bundle,src=/etc/ssl/certs/ca-certificates.crt -t "$image" .
podman image inspect "$image" --format 'image: {{.Size}} bytes'

name=foldserve-try
podman rm -f -i "$name" >/dev/null
trap 'podman logs --tail 20 "$name" 2>&1 || true; podman rm -f -i "$name" >/dev/null' EXIT
podman run -d --name "$name" --network none --read-only --tmpfs /tmp --cap-drop all \
    --security-opt no-new-privileges --memory 4g --no-healthcheck -v "$PWD/build/demo:/models:ro" "$image" >/dev/null

# curl in the container's network, which has nothing but a loopback.
inside() { nsenter -t "$(podman inspect "$name" --format '{{.State.Pid}}')" -n "$@"; }
tries=0
until inside curl -fs -o /dev/null http://127.0.0.1:8000/v2/health/ready; do
    tries=$((tries + 1))
    [ "$(podman inspect "$name" --format '{{.State.Running}}')" = true ] ||
        { echo "try-image: the container ended" >&2; exit 1; }
    [ "$tries" -lt 120 ] || { echo "try-image: not ready after 60 s" >&2; exit 1; }
    sleep 0.5
done
echo "ready; the image's own health check:"
podman exec "$name" python3 -c "$(podman image inspect "$image" --format '{{index .HealthCheck.Test 3}}')"
inside curl -fsS -H 'content-type: application/json' -d '{"inputs": [[0,1,2,3,4,5,6,7,8,9]]}' http://127.0.0.1:8000/predict/mlp
echo
inside curl -fsS http://127.0.0.1:8000/metrics | grep '^foldserve_requests_total'
podman exec "$name" id

podman stop -t 30 "$name" >/dev/null
code=$(podman inspect "$name" --format '{{.State.ExitCode}}')
echo "after SIGTERM: exit code $code"
[ "$code" = 0 ]
