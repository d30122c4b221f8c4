# The serving image: foldserve and what it needs to serve ONNX files, without torch. deploy/README.md says how to
# build it, for CUDA too, and what was tested.

# Pin the base by digest for a build that can be repeated: --build-arg BASE_IMAGE=NAME:TAG@sha256:DIGEST
ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS dependencies
# Extras of pyproject.toml beside "grpc", with commas: "cuda" brings the CUDA and cuDNN wheels, "export" torch for TorchScript models.
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# Only the two files above decide what this layer holds, so a change of the source does not install it again.
# The secrets are for a network with a certificate authority or a pip configuration of its own; none stays in the image.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca_bundle,target=/run/ca-bundle.crt,required=false \
    if [ -f /run/ca-bundle.crt ]; then export PIP_CERT=/run/ca-bundle.crt; fi \
    && python3 -m venv /opt/foldserve \
    && EXTRAS="${EXTRAS}" python3 -c 'import os, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; wanted = {"grpc", *filter(None, os.environ["EXTRAS"].split(","))}; print(*p["dependencies"], *(d for e in wanted for d in p["optional-dependencies"][e]), sep="\n")' > requirements.txt \
    && /opt/foldserve/bin/pip install --no-input --disable-pip-version-check -c constraints.txt -r requirements.txt


FROM dependencies AS application
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca_bundle,target=/run/ca-bundle.crt,required=false \
    if [ -f /run/ca-bundle.crt ]; then export PIP_CERT=/run/ca-bundle.crt; fi \
    && apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && /opt/foldserve/bin/pip install --no-input --disable-pip-version-check -c constraints.txt setuptools mypy types-PyYAML
COPY setup.py README.md LICENSE ./
COPY foldserve ./foldserve
COPY models ./models
COPY service ./service
# --prefix gives a tree of foldserve's own files alone; it is laid over the environment below as a layer of its own.
# The way of a request is compiled (setup.py); the compiler stays in this stage.
RUN COMPILE_FOLDSERVE=1 /opt/foldserve/bin/pip install --no-input --disable-pip-version-check --no-index --no-deps --no-build-isolation \
    --prefix /overlay .


FROM ${BASE_IMAGE}
COPY --from=dependencies /opt/foldserve /opt/foldserve
COPY --from=application /overlay /opt/foldserve
# ORT_DISABLE_TELEMETRY: foldserve sets it itself (service/backends/onnxruntime/library.py); here for whatever else runs in the image.
# NVIDIA_*: read by NVIDIA's container runtime where there is one, by nothing else.
ENV PATH=/opt/foldserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FOLDSERVE_HOST=0.0.0.0 \
    FOLDSERVE_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
# A number, so that Kubernetes can check runAsNonRoot. Nothing in the image belongs to it; it writes to /tmp and /dev/shm.
USER 10001:10001
# gRPC listens on 8001 where FOLDSERVE_GRPC_PORT says so.
EXPOSE 8000 8001
# Exec form all through: foldserve is PID 1 and gets SIGTERM itself.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import sys; from foldserve.service.commands.health_check import ask; sys.exit(ask('/v2/health/ready'))"]
ENTRYPOINT ["foldserve"]
CMD ["serve", "/models"]
