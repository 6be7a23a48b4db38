"""List the SageMaker endpoints of an account, or delete one with what was made for it.

Examples:
  berth endpoint list
  berth endpoint delete cats              the endpoint and what `berth deploy` made for it; archives and image stay
  berth endpoint delete cats --dry-run    the calls that would be made

Exit status: 0 done (also when there was nothing to delete), 1 something failed.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from container.cli import aws, sagemaker
from container.cli.deployment import VARIANT, Call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``berth endpoint``."""
    what = parser.add_subparsers(dest="what", required=True, metavar="list|delete")
    listed = what.add_parser("list", help="name, status, instances and age of each endpoint")
    deleted = what.add_parser("delete", help="delete an endpoint, its configuration and its models")
    deleted.add_argument("name", metavar="ENDPOINT")
    deleted.add_argument("--dry-run", action="store_true", help="print the calls, make none")
    for each in (listed, deleted):
        each.add_argument("--region", help="AWS region (default: the AWS configuration)")
        each.add_argument("--profile", help="AWS profile")


def run(options: argparse.Namespace) -> int:
    """List or delete; return the exit status."""
    try:
        session = aws.session(options.region, options.profile)
        if options.what == "list":
            print("\n".join(table(session.client("sagemaker"))))
        else:
            calls = deletion(session.client("sagemaker"), options.name)
            if not calls:
                print(f"there is no endpoint {options.name}", file=sys.stderr)
            _delete(session, calls, dry_run=options.dry_run)
    except aws.Trouble as error:
        print(f"berth endpoint: {error}", file=sys.stderr)
        return 1
    except aws.errors() as error:
        print(f"berth endpoint: {aws.explain(error)}", file=sys.stderr)
        return 1
    return 0


def table(client: Any) -> list[str]:
    """Return a heading and one line for each endpoint, newest first."""
    lines = [f"{'ENDPOINT':<40} {'STATUS':<14} {'INSTANCES':<20} CREATED"]
    for page in client.get_paginator("list_endpoints").paginate():
        for each in page["Endpoints"]:
            seen = sagemaker.describe(client, "describe_endpoint", EndpointName=each["EndpointName"])
            if seen is not None:
                lines.append(_line(client, seen))
    return lines


def _line(client: Any, seen: Any) -> str:
    config = sagemaker.describe(client, "describe_endpoint_config", EndpointConfigName=seen["EndpointConfigName"])
    counts = {each["VariantName"]: each.get("CurrentInstanceCount") for each in seen.get("ProductionVariants", [])}
    variants = [] if config is None else config["ProductionVariants"]
    shown = ", ".join(
        f"{counts.get(each['VariantName']) or each.get('InitialInstanceCount', '?')} x {each.get('InstanceType', '?')}"
        for each in variants
    )
    status, created = seen["EndpointStatus"], seen["CreationTime"].strftime("%Y-%m-%d %H:%M")
    return f"{seen['EndpointName']:<40} {status:<14} {shown:<20} {created}"


def deletion(client: Any, name: str) -> list[Call]:
    """Return the calls that delete an endpoint and what `berth deploy` has made for it; [] when nothing is there."""
    calls = []
    if sagemaker.describe(client, "describe_endpoint", EndpointName=name) is not None:
        target = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        }
        calls.append(Call("application-autoscaling", "deregister_scalable_target", target, "nothing is left to scale"))
        calls.append(Call("sagemaker", "delete_endpoint", {"EndpointName": name}, "as told"))
    # By name, not by what the endpoint uses now: every deploy with another wish has left a pair behind.
    for kind, key in (("endpoint_config", "EndpointConfigName"), ("model", "ModelName")):
        pages = client.get_paginator(f"list_{kind}s").paginate(NameContains=f"{name}-")
        names = [each[key] for page in pages for each in page["EndpointConfigs" if kind != "model" else "Models"]]
        ours = sorted(each for each in names if re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", each))
        calls += [Call("sagemaker", f"delete_{kind}", {key: each}, each) for each in ours]
    return calls


def _delete(session: Any, calls: list[Call], *, dry_run: bool) -> None:
    for call in calls:
        try:
            sagemaker.carry_out(session, [call], dry_run=dry_run)
        except aws.errors() as error:
            if not sagemaker.is_absent(error):
                raise
            print(f"  {call.operation}: was not there", file=sys.stderr)  # gone meanwhile, or never scaled
