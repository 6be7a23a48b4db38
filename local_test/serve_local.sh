#!/usr/bin/env bash
# Starts berth, and in front of it the endpoint stand-in, on a folder of archives.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: local_test/serve_local.sh [options] ARCHIVES
       local_test/serve_local.sh [options] --single ARCHIVE.tar.gz

Serves every *.tar.gz under the folder ARCHIVES as SageMaker would behind a multi-model endpoint: boto3's
sagemaker-runtime client invokes them by TargetModel. With --single it plays a single-model endpoint instead.
Everything listens on 127.0.0.1 only. GET / of the endpoint shows which server has which model, and its memory;
a model that is called much is loaded on more than one. Ctrl-C stops all processes and removes the unpacked models.

  -p, --port PORT        port of the endpoint (default 8090)
  -s, --server-port PORT port of the server itself (default 8080)
  -e, --endpoint NAME    EndpointName (default local)
  -m, --memory SIZE      BERTH_MEMORY_LIMIT of each, for instance 120MiB
  -n, --instances N      so many servers behind the endpoint (default 1), on consecutive ports
  -d, --docker           run the servers in containers of the image (IMAGE, default berth:dev, made by 'make image')
  -h, --help             this text

Other settings are taken from the environment (README, "Settings"). PYTHON names the interpreter (default .venv's).

Examples:
  local_test/serve_local.sh .demo/archives
  local_test/serve_local.sh --docker -n 2 -m 100MiB .demo/archives
  local_test/predict.sh digits.tar.gz local_test/payloads/digit.png

Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 a process did not start or ended by itself, 2 wrong arguments.
TEXT
}

refuse() {
    echo "serve_local.sh: $1 (--help tells more)" >&2
    exit 2
}

port=8090 server_port=8080 endpoint=local single="" archives="" instances=1 docker=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        -d | --docker) docker=yes && shift ;;
        -p | --port | -s | --server-port | -e | --endpoint | -m | --memory | -n | --instances | --single)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case "$1" in
                -p | --port) port=$2 ;;
                -s | --server-port) server_port=$2 ;;
                -e | --endpoint) endpoint=$2 ;;
                -m | --memory) export BERTH_MEMORY_LIMIT=$2 ;;
                -n | --instances) instances=$2 ;;
                --single) single=$2 ;;
            esac
            shift 2
            ;;
        -*) refuse "unknown option $1" ;;
        *)
            [ -z "$archives" ] || refuse "more than one folder given"
            archives=$1
            shift
            ;;
    esac
done
if [ -n "$single" ]; then
    [ -z "$archives" ] || refuse "give either a folder or --single"
    [ -f "$single" ] || refuse "$single is not a file"
    single=$(realpath "$single")
else
    [ -n "$archives" ] || refuse "no folder of archives given"
    [ -d "$archives" ] || refuse "$archives is not a folder"
    archives=$(realpath "$archives")
fi

[[ $instances =~ ^[1-9][0-9]?$ ]] || refuse "--instances $instances is not a number from 1 to 99"
image=${IMAGE:-berth:dev}
if [ -n "$docker" ]; then
    command -v docker >/dev/null || refuse "docker is not installed"
    docker version >/dev/null 2>&1 || refuse "no docker engine answers; start one (sh .ci/docker.sh start)"
    docker image inspect "$image" >/dev/null 2>&1 || refuse "there is no image $image here; 'make image' builds berth:dev"
fi

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || refuse "no interpreter at $python; run 'make setup' or set PYTHON"

place=$(mktemp -d "${TMPDIR:-/tmp}/berth-local-XXXXXX")
pids=()
clean_up() {
    trap '' INT TERM
    # The endpoint first: it must not see its container go. Each stops its own children.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill -TERM "${pids[i]}" 2>/dev/null || true
        wait "${pids[i]}" 2>/dev/null || true
    done
    rm -rf "$place"
}
trap clean_up EXIT
trap 'exit 0' INT TERM

export SAGEMAKER_BASE_DIR=$place/ml
mkdir -p "$place/ml/models"
if [ -n "$single" ]; then
    mkdir "$place/ml/model"
    "$python" -m local_test.bucket "$single" "$place/ml/model"
    unset SAGEMAKER_MULTI_MODEL
    what=(--single)
else
    export SAGEMAKER_MULTI_MODEL=true
    what=(--models "$archives")
fi

serve() { # one server, on a port, with a state folder of its own
    if [ -n "$docker" ]; then
        given=()
        for name in $(compgen -e | grep -E '^(BERTH_|SAGEMAKER_|HF_TASK$)' | grep -vE '^(BERTH_STATE_DIR|BERTH_HOST|SAGEMAKER_BIND_TO_PORT)$'); do
            given+=(-e "$name")
        done
        exec docker run --rm --name "berth-local-$$-$1" -p "127.0.0.1:$1:8080" -v "$place/ml:$place/ml:ro" \
            "${given[@]}" "$image" serve
    fi
    export SAGEMAKER_BIND_TO_PORT=$1
    state=${BERTH_STATE_DIR:-$place/state}
    [ "$instances" = 1 ] || state=$state-$1
    BERTH_STATE_DIR=$state exec "$python" -m container serve
}

containers=()
for ((i = 0; i < instances; i++)); do
    serve $((server_port + i)) &
    pids+=($!)
    containers+=(--container "http://127.0.0.1:$((server_port + i))")
done
"$python" -m local_test.endpoint "${what[@]}" "${containers[@]}" --base "$place/ml" \
    --port "$port" --endpoint-name "$endpoint" &
pids+=($!)
echo "when the endpoint's address appears: local_test/predict.sh -u http://127.0.0.1:$port -e $endpoint ..." >&2

# Ends when either does; a signal ends it earlier, through the trap.
wait -n "${pids[@]}" || true
echo "serve_local.sh: a process ended by itself; its last lines are above" >&2
exit 1
