"""What build_and_push.sh asks of AWS: who we are, that the repository is there, and the password for docker login.

    python -m container.cli.ecr host [--account ID] [--region NAME]     prints the registry's host name
    python -m container.cli.ecr ensure REPOSITORY [...]                 creates the repository if it is missing
    python -m container.cli.ecr password [...]                          prints the password, for a pipe

Exit status 0, or 1 with one sentence on stderr saying what is missing.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from typing import Any

from container.cli import aws


def host(account: str, region: str) -> str:
    """Return the host name of an account's registry; China has a domain of its own."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{account}.dkr.ecr.{region}.{suffix}"


def password_of(answer: dict[str, Any]) -> str:
    """Return the password in the answer of GetAuthorizationToken, which is base64 of "AWS:password"."""
    user, _, password = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode().partition(":")
    assert user == "AWS"
    return password


def ensure(client: Any, repository: str, account: str | None) -> bool:
    """Create ``repository`` unless it is there; return whether it was created. Raises botocore's ClientError."""
    owner = {"registryId": account} if account else {}
    try:
        client.describe_repositories(repositoryNames=[repository], **owner)
    except client.exceptions.RepositoryNotFoundException:
        client.create_repository(repositoryName=repository, **owner)
        return True
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Do one of the three; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m container.cli.ecr")
    parser.add_argument("what", choices=["host", "ensure", "password"])
    parser.add_argument("repository", nargs="?", default="")
    parser.add_argument("--account")
    parser.add_argument("--region")
    options = parser.parse_args(argv)
    try:
        session = aws.session(options.region)
        if options.what == "host":
            account = options.account or session.client("sts").get_caller_identity()["Account"]
            print(host(account, session.region_name))
        elif options.what == "password":
            print(password_of(session.client("ecr").get_authorization_token()))
        elif ensure(session.client("ecr"), options.repository, options.account):
            print(f"created the repository {options.repository}", file=sys.stderr)
    except aws.Trouble as error:
        print(error, file=sys.stderr)
        return 1
    except aws.errors() as error:
        print(aws.explain(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
