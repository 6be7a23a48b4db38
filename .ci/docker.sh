#!/bin/sh
# A docker engine for the verbs that need one.  sh .ci/docker.sh start | stop | tools
# start: nothing where one answers; else, as root, Debian's docker.io is installed if missing and dockerd started, apart
# from this terminal. stop: ends the engine that start has started, no other.
# tools: docker-registry, docker-compose and a client that can drive BuildKit (one with buildx, or Debian's docker.io,
# which needs none) are installed if they are missing; the tests start and end them themselves.
set -eu

STARTED=/run/berth-dockerd.pid
LOG=/var/log/berth-dockerd.log
fail() { printf 'docker: %s\n' "$*" >&2; exit 1; }

start() {
    if command -v docker >/dev/null && docker version >/dev/null 2>&1; then return; fi
    [ -z "${DOCKER_HOST:-}" ] || fail "nothing answers at DOCKER_HOST=$DOCKER_HOST"
    [ "$(id -u)" = 0 ] || fail "no engine answers and only root may start one: start docker, or run this as root"
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || fail "no dockerd here and no apt-get to bring it: install docker"
        echo "== docker.io (Debian's engine)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends docker.io iptables; } \
            >"$LOG" 2>&1 || { tail -5 "$LOG" >&2; fail "apt-get cannot install docker.io"; }
    fi
    [ -d /sys/fs/cgroup/memory ] || [ -f /sys/fs/cgroup/cgroup.controllers ] \
        || fail "this machine has no memory cgroups under /sys/fs/cgroup; containers cannot run here"
    echo "== dockerd (sh .ci/docker.sh stop ends it)"
    setsid dockerd --log-level=warn </dev/null >"$LOG" 2>&1 &
    pid=$!
    for _ in $(seq 100); do
        if docker version >/dev/null 2>&1; then echo "$pid" >"$STARTED"; return; fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.3
    done
    tail -5 "$LOG" >&2
    kill "$pid" 2>/dev/null || true
    fail "dockerd does not start on this machine (above: the end of $LOG)"
}

stop() {
    [ -f "$STARTED" ] || return 0
    pid=$(cat "$STARTED")
    rm -f "$STARTED"
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.2; done
}

drives_buildkit() { # buildx, or a client from before version 23
    docker buildx version >/dev/null 2>&1 && return
    for client in $(printf '%s/docker ' $(echo "$PATH" | tr : ' ')); do
        if "$client" --version 2>/dev/null | grep -qE 'version (1[0-9]|2[0-2])\.'; then return; fi
    done
    return 1
}

tools() {
    missing=""
    command -v docker-registry >/dev/null || missing="docker-registry"
    command -v docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || missing="$missing docker-compose"
    if ! drives_buildkit; then
        if apt-cache show docker-buildx >/dev/null 2>&1; then missing="$missing docker-buildx"; else missing="$missing docker.io"; fi
    fi
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "missing here: apt-get install $missing"
    echo "== $missing"
    # shellcheck disable=SC2086 (a list of words)
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing; } \
        >"$LOG" 2>&1 || { tail -5 "$LOG" >&2; fail "apt-get cannot install $missing"; }
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    tools) tools ;;
    *) fail "sh .ci/docker.sh start | stop | tools" ;;
esac
