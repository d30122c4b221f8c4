#!/bin/sh
# Ask with curl:   sh examples/curl.sh [URL [MODEL PICTURE]]
set -eu
url=${1:-http://localhost:8000} model=${2:-} picture=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ask() { curl --silent --show-error --fail-with-body "$@"; }

ask "$url/v2/health/ready" && echo "ready"

# JSON: a row of ten numbers.
ask -H 'Content-Type: application/json' -d '{"inputs": [[0,1,2,3,4,5,6,7,8,9]]}' "$url/predict/mlp" && echo

# The Open Inference Protocol.
ask -d '{"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": [0,1,2,3,4,5,6,7,8,9]}]}' \
    "$url/v2/models/mlp/infer" && echo

# KServe v1, which is TensorFlow Serving's.
ask -d '{"instances": [[0,1,2,3,4,5,6,7,8,9]]}' "$url/v1/models/mlp:predict" && echo

# Raw little-endian numbers, here ten zeros, out of a pipe; and back.
head -c 40 /dev/zero |
    ask -H 'Content-Type: application/octet-stream' --data-binary @- -o "$work/y.bin" "$url/predict/mlp"
od -A n -t f4 "$work/y.bin"

# A picture, and its labels.
[ -z "$picture" ] || { ask -H 'Content-Type: image/jpeg' -X POST -T "$picture" "$url/predict/$model?top=1" && echo; }
