#!/usr/bin/env bash
# Starts berth, and in front of it the endpoint stand-in, on a folder of archives.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: local_test/serve_local.sh [options] ARCHIVES
       local_test/serve_local.sh [options] --single ARCHIVE.tar.gz

Serves every *.tar.gz under the folder ARCHIVES as SageMaker would behind a multi-model endpoint: boto3's
sagemaker-runtime client invokes them by TargetModel. With --single it plays a single-model endpoint instead.
Everything listens on 127.0.0.1 only. Ctrl-C stops both processes and removes the unpacked models.

  -p, --port PORT        port of the endpoint (default 8090)
  -s, --server-port PORT port of the server itself (default 8080)
  -e, --endpoint NAME    EndpointName (default local)
  -m, --memory SIZE      BERTH_MEMORY_LIMIT, for instance 120MiB
  -h, --help             this text

Other settings are taken from the environment (README, "Settings"). PYTHON names the interpreter (default .venv's).

Examples:
  local_test/serve_local.sh .demo/archives
  local_test/predict.sh digits.tar.gz local_test/payloads/digit.png

Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 a process did not start or ended by itself, 2 wrong arguments.
TEXT
}

refuse() {
    echo "serve_local.sh: $1 (--help tells more)" >&2
    exit 2
}

port=8090 server_port=8080 endpoint=local single="" archives=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        -p | --port | -s | --server-port | -e | --endpoint | -m | --memory | --single)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case "$1" in
                -p | --port) port=$2 ;;
                -s | --server-port) server_port=$2 ;;
                -e | --endpoint) endpoint=$2 ;;
                -m | --memory) export BERTH_MEMORY_LIMIT=$2 ;;
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

export SAGEMAKER_BIND_TO_PORT=$server_port SAGEMAKER_BASE_DIR=$place/ml
export BERTH_STATE_DIR=${BERTH_STATE_DIR:-$place/state}
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

"$python" -m container serve &
pids+=($!)
"$python" -m local_test.endpoint "${what[@]}" --container "http://127.0.0.1:$server_port" --base "$place/ml" \
    --port "$port" --endpoint-name "$endpoint" &
pids+=($!)
echo "when the endpoint's address appears: local_test/predict.sh -u http://127.0.0.1:$port -e $endpoint ..." >&2

# Ends when either does; a signal ends it earlier, through the trap.
wait -n "${pids[@]}" || true
echo "serve_local.sh: a process ended by itself; its last lines are above" >&2
exit 1
