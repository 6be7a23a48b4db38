# berth in an image: docs/image.md says how it is built for a GPU or a CPU, what is in it and how it is run.
# The classic builder is enough (no RUN --mount, no syntax line); buildx works as well.
ARG BASE_IMAGE=python:3.11-slim-bookworm
# Extras of pyproject.toml, separated by spaces; each has a lock. "mms" is the second door and brings Java.
ARG EXTRAS="triton onnx xgboost signing"

# ---------------------------------------------------------------- base: Python 3.11 or later, brought if it is missing
FROM ${BASE_IMAGE} AS base
RUN python3 -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
      apt-get update \
      && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
      && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the base image has no Python 3.11")'; }

# ------------------------------------------- environment: what we depend on; of this stage only /opt/berth is kept
FROM base AS environment
# An optional, ignored folder of the builder's machine: extra/ca.crt and extra/pip.conf (lines of its section [global])
# for pip, extra/wheels/ before any index.
COPY requirements/torch.txt extra* /extra/
RUN mkdir -p /extra/wheels \
    && { printf '[global]\nno-cache-dir = true\nno-compile = true\ndisable-pip-version-check = true\n'; \
         printf 'find-links = /extra/wheels\nroot-user-action = ignore\n'; \
         test ! -f /extra/ca.crt || echo 'cert = /extra/ca.crt'; \
         test ! -f /extra/pip.conf || cat /extra/pip.conf; } > /etc/pip.conf \
    && python3 -m venv /opt/berth
# torch stands outside the hashed lock: its build is chosen by the machine it is for.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN /opt/berth/bin/pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} -r /extra/torch.txt
ARG EXTRAS
COPY requirements/*.lock /requirements/
RUN set -e; locks="-r /requirements/core.lock"; \
    for extra in ${EXTRAS}; do locks="$locks -r /requirements/$extra.lock"; done; \
    /opt/berth/bin/pip install --require-hashes --no-deps $locks; \
    /opt/berth/bin/pip check
# What only a compiler or a test would read goes; bytecode is made once, valid whatever the clock says, because the
# root filesystem may be read-only.
RUN cd /opt/berth/lib/python3*/site-packages \
    && rm -rf torch/include torch/share torch/test && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . \( -name '*.a' -o -name '*.pyi' \) -delete \
    && echo /opt/berth/app > berth.pth \
    && printf '#!/opt/berth/bin/python\nimport sys\n\nfrom container.cli import main\n\nsys.exit(main())\n' > /opt/berth/bin/berth \
    && chmod 755 /opt/berth/bin/berth \
    && { /opt/berth/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash . >/dev/null || true; }

# ------------------------------------------------------------------------------ application: our code, compiled alone
FROM environment AS application
COPY container /opt/berth/app/container/
COPY handlers /opt/berth/app/handlers/
RUN /opt/berth/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/berth/app

# ----------------------------------------------------------------------------------------------------------- the image
FROM base
# SageMaker asks for root; another user (docker run --user) finds a state folder it may write to.
RUN install -d -m 1777 /var/lib/berth && install -d /opt/ml/model /opt/ml/models
COPY --from=environment /opt/berth /opt/berth
COPY --from=application /opt/berth/app /opt/berth/app
ENV PATH=/opt/berth/bin:$PATH \
    BERTH_HOST=0.0.0.0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL com.amazonaws.sagemaker.capabilities.multi-models=true \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
EXPOSE 8080
ENTRYPOINT ["/opt/berth/bin/berth"]
CMD ["serve"]
ARG EXTRAS
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title=berth \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      berth.extras="${EXTRAS}"
