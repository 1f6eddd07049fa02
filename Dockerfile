# snapd in a container: the daemon, the bundled store, snapctl and its drill.
#
#   docker build -t mooncake-snapd:0.1.0 .
#   docker build -t mooncake-snapd:0.1.0-mooncake --target mooncake .   also Mooncake's store service
#
# Everything that pip installs is pinned by hash (requirements/*.lock, tools/lock_images.py). Runs as
# user 10001 with a read-only root file system; it writes below /dev/shm, /run/mooncake-snapd and
# /var/lib/mooncake-snapd, which have to be mounted. How to run it: docs/kubernetes.md.

# The index for all platforms of python:3.11-slim-bookworm (Python 3.11.16) in September 2026. Renew:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/runtime.lock requirements/mooncake.lock requirements/
RUN python3 -m venv /build/tools \
    && /build/tools/bin/pip install --require-hashes --no-deps --only-binary :all: -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY snapd snapd
RUN /build/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheels .

# An environment without pip, and without what only builds: nothing in the image can install things.
FROM build AS environment
RUN python3 -m venv --without-pip /opt/mooncake-snapd \
    && pip --python /opt/mooncake-snapd/bin/python install \
        --require-hashes --no-deps --only-binary :all: -r requirements/runtime.lock \
    && pip --python /opt/mooncake-snapd/bin/python install --no-deps /build/wheels/*.whl \
    && pip --python /opt/mooncake-snapd/bin/python uninstall --yes hatchling editables trove-classifiers

FROM build AS environment-mooncake
RUN python3 -m venv --without-pip /opt/mooncake-snapd \
    && pip --python /opt/mooncake-snapd/bin/python install \
        --require-hashes --no-deps --only-binary :all: -r requirements/mooncake.lock \
    && pip --python /opt/mooncake-snapd/bin/python install --no-deps /build/wheels/*.whl \
    && pip --python /opt/mooncake-snapd/bin/python uninstall --yes hatchling editables trove-classifiers

FROM ${BASE} AS base
RUN groupadd --gid 10001 snapd \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin snapd \
    && install --directory --owner 10001 --group 10001 --mode 0750 /run/mooncake-snapd /var/lib/mooncake-snapd
ENV PATH=/opt/mooncake-snapd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
EXPOSE 9470
USER 10001:10001
WORKDIR /

FROM base AS mooncake
USER 0:0
# What the wheel's binaries load.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libibverbs1 librdmacm1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=environment-mooncake /opt/mooncake-snapd /opt/mooncake-snapd
ENTRYPOINT []
CMD ["snapd", "run"]

FROM base AS snapd
COPY --from=environment /opt/mooncake-snapd /opt/mooncake-snapd
ENTRYPOINT []
CMD ["snapd", "run"]
