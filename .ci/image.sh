#!/bin/sh
# Builds the image with whatever this machine has. Called by `make image` and the tests of the image.
#   IMAGE=berth:dev  BASE_IMAGE=python:3.11-slim-bookworm  TORCH_INDEX_URL=https://...  EXTRAS="mms"
# Where no image can be pulled, the base is made with debootstrap; where PyTorch's index cannot be reached, torch comes
# as a wheel from wherever this machine's pip finds it (extra/wheels/, ignored by git, kept for the next time).
set -eu
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-berth:dev}
TORCH=$(cat requirements/torch.txt)
OWN_BASE=berth-base:bookworm
fail() { printf 'image: %s\n' "$*" >&2; exit 1; }
has_image() { docker image inspect "$1" >/dev/null 2>&1; }

make_base() { # Debian with Python, from its package mirror
    [ "$(id -u)" = 0 ] || fail "no image can be pulled, and only root can make a base with debootstrap"
    if ! command -v debootstrap >/dev/null; then
        { apt-get update -qq && apt-get install -qq --no-install-recommends debootstrap; } >/dev/null 2>&1 \
            || fail "no image can be pulled, and there is no debootstrap to make a base with"
    fi
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    echo "== $OWN_BASE by debootstrap, because no image can be pulled"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" \
        "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$root.log" 2>&1 || { tail -5 "$root.log" >&2; fail "debootstrap failed"; }
    rm -f "$root.log"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
        "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale
    tar -C "$root" -c . | docker import -c 'CMD ["python3"]' - "$OWN_BASE" >/dev/null
    rm -rf "$root"
}

choose_base() {
    base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)}
    if has_image "$base" || timeout 300 docker pull -q "$base" >/dev/null 2>&1; then return; fi
    [ -z "${BASE_IMAGE:-}" ] || fail "BASE_IMAGE=$BASE_IMAGE is not here and cannot be pulled"
    has_image "$OWN_BASE" || make_base
    base=$OWN_BASE
}

reachable() { # by the means the build has: Python and the machine's certificates
    python3 - "$1" <<'PROBE' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=10).close()
PROBE
}

choose_torch() {
    index=${TORCH_INDEX_URL-$(sed -n 's/^ARG TORCH_INDEX_URL=//p' Dockerfile)}
    mkdir -p extra/wheels
    if [ ! -f extra/ca.crt ] && [ -f /etc/ssl/certs/ca-certificates.crt ]; then
        cp /etc/ssl/certs/ca-certificates.crt extra/ca.crt
    fi
    version=${TORCH#torch==}
    if ls extra/wheels/torch-"$version"* >/dev/null 2>&1; then index=""; return; fi
    if [ -n "${TORCH_INDEX_URL:-}" ] || reachable "$index"; then return; fi
    echo "== $TORCH as a wheel, because $index cannot be reached"
    for python in .venv/bin/python python3; do
        if "$python" -m pip -q download --no-deps --only-binary :all: -d extra/wheels "$TORCH"; then index=""; return; fi
    done
    fail "no $TORCH to be had: set TORCH_INDEX_URL, or put its wheel into extra/wheels/"
}

EXTRAS=${EXTRAS-$(sed -n 's/^ARG EXTRAS="\(.*\)"/\1/p' Dockerfile)}
for extra in $EXTRAS; do
    [ -f "requirements/$extra.lock" ] || fail "there is no extra '$extra'; there are:$(cd requirements && ls ./*.lock | grep -v core | sed 's|./\(.*\)\.lock| \1|' | tr -d '\n')"
done
sh .ci/docker.sh start
choose_base
choose_torch
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' container/__init__.py)
revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# SageMaker takes docker's media types and no index: buildx would add attestations, and with them one.
plain="--platform linux/amd64"
if docker buildx build --help 2>/dev/null | grep -q -- --provenance; then
    plain="$plain --provenance=false --sbom=false --output type=docker"
fi
echo "== $IMAGE from $base"
began=$(date +%s)
if ! docker build $plain --network=host -t "$IMAGE" --build-arg BASE_IMAGE="$base" --build-arg TORCH_INDEX_URL="$index" \
    --build-arg EXTRAS="$EXTRAS" --build-arg VERSION="$version" --build-arg REVISION="$revision" . >build.log 2>&1; then
    tail -25 build.log >&2
    fail "docker build failed (build.log)"
fi
rm -f build.log
echo "== $IMAGE: $(docker image inspect -f '{{.Size}}' "$IMAGE" | awk '{printf "%.0f MB", $1 / 1e6}'), built in $(($(date +%s) - began)) s"
