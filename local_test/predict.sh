#!/usr/bin/env bash
# Sends one payload to a model behind the endpoint stand-in and prints the answer.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: local_test/predict.sh [options] TARGET_MODEL PAYLOAD_FILE
       local_test/predict.sh [options] - PAYLOAD_FILE          (a single-model endpoint)

  -u, --url URL          address of the endpoint stand-in (default http://127.0.0.1:8090)
  -e, --endpoint NAME    EndpointName (default local)
  -t, --type TYPE        Content-Type (default: by the file's ending)
  -a, --accept TYPE      Accept (default: none)
  -h, --help             this text

Examples:
  local_test/predict.sh sentences.tar.gz local_test/payloads/sentences.json
  local_test/predict.sh digits.tar.gz local_test/payloads/digit.png

Exit codes: 0 answered, 1 refused (the error goes to stderr), 2 wrong arguments, 3 nobody answers at the address.
TEXT
}

refuse() {
    echo "predict.sh: $1 (--help tells more)" >&2
    exit 2
}

url=http://127.0.0.1:8090 endpoint=local type="" accept="" rest=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        -u | --url | -e | --endpoint | -t | --type | -a | --accept)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case "$1" in
                -u | --url) url=${2%/} ;;
                -e | --endpoint) endpoint=$2 ;;
                -t | --type) type=$2 ;;
                -a | --accept) accept=$2 ;;
            esac
            shift 2
            ;;
        -?*) refuse "unknown option $1" ;;
        *) rest+=("$1") && shift ;;
    esac
done
[ ${#rest[@]} -eq 2 ] || refuse "expected TARGET_MODEL and PAYLOAD_FILE"
target=${rest[0]} file=${rest[1]}
[ -r "$file" ] || refuse "$file cannot be read"
command -v curl >/dev/null || refuse "curl is not installed"

if [ -z "$type" ]; then
    case "$file" in
        *.json) type=application/json ;;
        *.csv) type=text/csv ;;
        *.txt) type=text/plain ;;
        *.png) type=image/png ;;
        *.jpg | *.jpeg) type=image/jpeg ;;
        *.npy) type=application/x-npy ;;
        *.npz) type=application/x-npz ;;
        *) type=application/octet-stream ;;
    esac
fi
headers=(-H "Content-Type: $type")
[ -z "$accept" ] || headers+=(-H "Accept: $accept")
[ "$target" = - ] || headers+=(-H "X-Amzn-SageMaker-Target-Model: $target")

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
# Expect: curl would otherwise wait a second before it sends more than 1 MB.
status=$(curl --silent --show-error --max-time 70 -o "$answer" -w '%{http_code}' -H 'Expect:' "${headers[@]}" \
    --data-binary "@$file" "$url/endpoints/$endpoint/invocations") || {
    echo "predict.sh: no answer from $url; is local_test/serve_local.sh running?" >&2
    exit 3
}
if [ "$status" -ge 400 ]; then
    echo "predict.sh: refused with $status" >&2
    cat "$answer" >&2
    echo >&2
    exit 1
fi
cat "$answer"
[ ! -t 1 ] || echo
