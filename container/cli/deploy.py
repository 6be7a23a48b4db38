"""Bring archives and an image to a SageMaker multi-model endpoint; run again, it changes only what is different.

Examples:
  berth deploy cats --image IMAGE --role ROLE --s3 s3://bucket/cats --archives ./archives
  berth deploy cats ... --instance-type ml.g5.xlarge --max-instances 4 --invocations 200
  berth deploy cats ... --dry-run            the AWS calls that would change something, one a line

The image is what build_and_push.sh prints last. Every .tar.gz goes under the prefix and is invoked by its name
(TargetModel). Needs `pip install 'berth[aws]'`, credentials and a region.
Exit status: 0 in service, 1 something failed or is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from container.cli import aws, deployment, sagemaker, shelf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``berth deploy``."""
    add = parser.add_argument
    add("name", metavar="ENDPOINT", help="name of the endpoint")
    add("--image", required=True, help="the image in ECR: ...amazonaws.com/berth@sha256:...")
    add("--role", required=True, help="execution role: its ARN or its name")
    add("--s3", required=True, metavar="URL", help="where the archives lie: s3://bucket/folder")
    add("--archives", nargs="+", type=Path, default=[], metavar="PATH", help=".tar.gz files, and folders of them")
    add("--overwrite", action="store_true", help="archives with other content under the same key are replaced")
    add("--instance-type", default="ml.m5.xlarge", help="(default %(default)s)")
    add("--instances", type=int, default=1, metavar="N", help="number of instances, with autoscaling the least (1)")
    add("--max-instances", type=int, metavar="N", help="autoscaling up to so many")
    add("--invocations", type=float, default=60, metavar="N", help="autoscaling's goal per instance and minute (60)")
    add("--no-cache", action="store_true", help="ModelCacheSetting Disabled: a model goes right after its call")
    add("--startup-timeout", type=int, default=600, metavar="S", help="seconds until /ping must answer (600)")
    add("--ami", metavar="VERSION", help=f"InferenceAmiVersion, for its GPU driver: {deployment.NEWEST_AMI}")
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server; may be repeated")
    add("--wait", type=float, default=1800, metavar="S", help="seconds to wait for the endpoint (1800; 0: not at all)")
    add("--region", help="AWS region (default: the AWS configuration)")
    add("--profile", help="AWS profile")
    add("--dry-run", action="store_true", help="print the calls that would change something, make none")


def run(options: argparse.Namespace) -> int:
    """Deploy; return the exit status."""
    try:
        session = aws.session(options.region, options.profile)
        return _deploy(session, options)
    except (aws.Trouble, deployment.Refused) as error:
        print(f"berth deploy: {error}", file=sys.stderr)
    except aws.errors() as error:
        print(f"berth deploy: {aws.explain(error)}", file=sys.stderr)
    return 1


def _deploy(session: Any, options: argparse.Namespace) -> int:
    wish = wish_of(options, _role_arn(session, options.role))
    for warning in deployment.check(wish):
        print(f"berth deploy: note: {warning}", file=sys.stderr)
    client = session.client("sagemaker")
    calls = deployment.steps(wish, sagemaker.look(client, wish))
    shelf.put_all(
        session.client("s3"), wish.prefix, options.archives, overwrite=options.overwrite, dry_run=options.dry_run
    )
    sagemaker.carry_out(session, calls, dry_run=options.dry_run)
    if options.dry_run:
        sagemaker.carry_out(session, deployment.scaling(wish), dry_run=True)
        return 0
    if options.wait > 0 or wish.max_instances is not None:  # a target can be registered only once it is in service
        wrong = sagemaker.wait(client, wish, options.wait or 1800)
        if wrong is not None:
            print(f"berth deploy: {wrong}", file=sys.stderr)
            for line in sagemaker.last_words(session, wish.name):
                print(f"  | {line}", file=sys.stderr)
            return 1
    sagemaker.carry_out(session, deployment.scaling(wish), dry_run=False)
    print(wish.name)
    return 0


def wish_of(options: argparse.Namespace, role: str) -> deployment.Wish:
    """Return the options as a Wish. Raises Refused for a malformed --env or --s3."""
    environment = {}
    for pair in options.env:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise deployment.Refused(f"--env {pair!r} is not KEY=VALUE")
        environment[name] = value
    bucket, prefix = deployment.s3_parts(options.s3)
    return deployment.Wish(
        name=options.name,
        image=options.image,
        role=role,
        prefix=f"s3://{bucket}/{prefix}",
        instance_type=options.instance_type,
        instances=options.instances,
        cache=not options.no_cache,
        startup_timeout_s=options.startup_timeout,
        ami=options.ami,
        environment=environment,
        max_instances=options.max_instances,
        invocations=options.invocations,
    )


def _role_arn(session: Any, role: str) -> str:
    if role.startswith("arn:"):
        return role
    return str(session.client("iam").get_role(RoleName=role)["Role"]["Arn"])
