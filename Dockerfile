# The one image of every pod: Ray's head and workers, the job's submitter and the endpoint.
#   docker build -t safetydpo:0.1.0-cpu .
#   docker build -t safetydpo:0.1.0-cuda --build-arg DEVICE=cuda .
# torch's CUDA wheels bring CUDA along, so both rest on the same small base.
FROM python:3.11-slim AS build
ARG DEVICE=cpu
# As in KubeRay's manifests (a test); the lock has to have it too.
ARG RAY_VERSION=2.60.0
# PyPI has the CUDA build of the lock's torch, and this index its CPU build.
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /app
# What is installed does not change with the code, so this layer is kept when only the code changes. Every file is held to
# the lock's hashes, so it does not matter which of two indexes serves it.
COPY requirements requirements
RUN set -eu; \
    grep -q "^ray==$RAY_VERSION " requirements/cuda.txt || { echo "the lock has no ray $RAY_VERSION" >&2; exit 1; }; \
    case "$DEVICE" in \
        cpu) pip install --extra-index-url "$CPU_INDEX" --require-hashes -r requirements/cpu.txt ;; \
        cuda) pip install --require-hashes -r requirements/cuda.txt ;; \
        *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY safety safety
COPY jobs jobs
COPY serve serve
# In place, as the code reads files beside it; the metadata tells artifacts the code's version. Compiled here, since
# the running container cannot write.
RUN pip install --no-deps --no-build-isolation -e . && python -m compileall -q cluster safety jobs serve

FROM python:3.11-slim
RUN groupadd --gid 1000 safetydpo \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /work --shell /usr/sbin/nologin safetydpo \
    && install -d -o 1000 -g 1000 /work
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# /work and /tmp are all that is written to; the rest may be read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/work RAY_USAGE_STATS_ENABLED=0
WORKDIR /app
USER 1000:1000
CMD ["python", "-m", "jobs.pipeline", "--help"]
