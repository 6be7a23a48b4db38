#!/usr/bin/env bash
# Builds the image for linux/amd64 and pushes it to ECR, or to a registry of your own.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./build_and_push.sh [options] [REPOSITORY]          (REPOSITORY: berth unless given)

  -a, --account ID          AWS account (default: whose credentials are in use)
  -r, --region NAME         AWS region (default: AWS_REGION or the AWS configuration)
      --registry HOST:PORT  push there instead of ECR; no AWS, no login
      --image NAME          push this local image instead of building
      --base-image NAME     BASE_IMAGE of the Dockerfile
      --torch-index-url URL where torch comes from: the CPU build unless given (docs/image.md)
      --extras "NAME ..."   extras of pyproject.toml to build in, for instance mms
      --dry-run             print the commands that would change something, and run none of them
  -h, --help                this text

The repository is created if it is missing. Tags: the commit and the version. The last two lines on stdout are the URI
with the commit's tag, and the URI with the digest; everything else goes to stderr.

Exit codes: 0 pushed, 1 something failed or is missing, 2 wrong arguments.
TEXT
}

fail() { echo "build_and_push.sh: $*" >&2; exit 1; }
refuse() { echo "build_and_push.sh: $1 (--help tells more)" >&2; exit 2; }

account="" region=${AWS_REGION:-} registry="" image="" repository="" dry=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --dry-run) dry=yes && shift ;;
        -a | --account | -r | --region | --registry | --image | --base-image | --torch-index-url | --extras)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case "$1" in
                -a | --account) account=$2 ;;
                -r | --region) region=$2 ;;
                --registry) registry=$2 ;;
                --image) image=$2 ;;
                --base-image) export BASE_IMAGE=$2 ;;
                --torch-index-url) export TORCH_INDEX_URL=$2 ;;
                --extras) export EXTRAS=$2 ;;
            esac
            shift 2
            ;;
        -*) refuse "unknown option $1" ;;
        *)
            [ -z "$repository" ] || refuse "more than one repository given"
            repository=$1 && shift
            ;;
    esac
done
repository=${repository:-berth}
[[ $repository =~ ^[a-z0-9]+([._/-][a-z0-9]+)*$ ]] || refuse "a repository is named in lower case: $repository is not"
[[ -z $account || $account =~ ^[0-9]{12}$ ]] || refuse "an AWS account has twelve digits: $account has not"

cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
ecr() { "$python" -m container.cli.ecr "$@" ${account:+--account "$account"} ${region:+--region "$region"}; }
run() {
    if [ -n "$dry" ]; then
        echo "would run: $*" >&2
    else
        "$@" >&2
    fi
}

# ------------------------------------------------------------------------------------------------- what is there
command -v docker >/dev/null || fail "docker is not installed"
if [ -z "$registry" ]; then
    command -v "$python" >/dev/null || fail "no interpreter at $python: run 'make setup', or set PYTHON to one with boto3"
    host=$(ecr host) || fail "AWS did not tell where to push to (above)"
else
    host=$registry
fi
revision=$(git rev-parse --short=12 HEAD 2>/dev/null) || fail "not a git checkout: there is no commit to tag with"
[ -z "$(git status --porcelain --untracked-files=no)" ] || revision=$revision-dirty
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' container/__init__.py)
name=$host/$repository

# ------------------------------------------------------------------------------------------------- build and push
if [ -z "$image" ]; then
    image=berth:$revision
    if [ -n "$dry" ]; then
        echo "would run: IMAGE=$image sh .ci/image.sh" >&2
    else
        IMAGE=$image sh .ci/image.sh >&2
    fi
elif [ -z "$dry" ]; then
    docker version >/dev/null 2>&1 || fail "no docker engine answers: start docker (as root: sh .ci/docker.sh start)"
    docker image inspect "$image" >/dev/null 2>&1 || fail "there is no image $image here: 'make image' builds berth:dev"
fi
if [ -z "$dry" ]; then
    built=$(docker image inspect -f '{{.Os}}/{{.Architecture}}' "$image")
    [ "$built" = linux/amd64 ] || fail "$image is for $built; SageMaker runs linux/amd64: build it without --image"
    label=com.amazonaws.sagemaker.capabilities.multi-models
    [ "$(docker image inspect -f "{{index .Config.Labels \"$label\"}}" "$image")" = true ] \
        || fail "$image lacks the label $label=true, and SageMaker would refuse it: is it berth's?"
fi
if [ -z "$registry" ]; then
    if [ -n "$dry" ]; then
        echo "would create the repository $repository if it is missing" >&2
        echo "would run: docker login --username AWS --password-stdin $host" >&2
    else
        ecr ensure "$repository" || fail "the repository $repository is not there and cannot be created (above)"
        # Through a pipe: a password among the arguments is seen by everybody on the machine.
        ecr password | docker login --username AWS --password-stdin "$host" >&2 || fail "cannot log in to $host (above)"
    fi
fi
for tag in "$revision" "$version"; do
    run docker tag "$image" "$name:$tag"
    run docker push --quiet "$name:$tag" || fail "cannot push $name:$tag (above)"
done
if [ -n "$dry" ]; then
    echo "$name:$revision"
    exit 0
fi
digest=$(docker image inspect -f '{{range .RepoDigests}}{{println .}}{{end}}' "$image" | grep -F "$name@" | tail -1)
[ -n "$digest" ] || fail "$host gave no digest for $name:$revision"
echo "$name:$revision"
echo "$digest"
