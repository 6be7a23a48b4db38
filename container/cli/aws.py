"""The way to AWS for the verbs that need it: a session with a region, and errors as sentences. boto3 only when used."""

from __future__ import annotations

from typing import Any


class Trouble(Exception):
    """Something is missing on this side, or AWS has refused; the message is for the person at the terminal."""


def session(region: str | None = None, profile: str | None = None) -> Any:
    """Return a boto3 Session with a region: the given one, else the AWS configuration's. Raises Trouble."""
    try:
        import boto3
    except ModuleNotFoundError:
        raise Trouble("boto3 is missing: pip install 'berth[aws]'") from None
    try:
        opened = boto3.Session(region_name=region, profile_name=profile)
    except errors() as error:
        raise Trouble(explain(error)) from error
    if not opened.region_name:
        raise Trouble("no AWS region: give --region, set AWS_DEFAULT_REGION, or `aws configure`")
    if opened.get_credentials() is None:
        raise Trouble("no AWS credentials: `aws configure`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID")
    return opened


def errors() -> tuple[type[Exception], ...]:
    """Return the classes of what AWS calls raise, for an ``except``."""
    import botocore.exceptions

    return (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError)


def explain(error: BaseException) -> str:
    """Return one sentence: AWS's own words with the call that failed, without a traceback."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return f"AWS: {error}"
    said = response.get("Error", {})
    call = getattr(error, "operation_name", "a call")
    text = f"AWS refused {call}: {said.get('Code', 'error')}: {said.get('Message', '')}".strip()
    if said.get("Code") in {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}:
        text += " (the user or role in use lacks this permission)"
    if said.get("Code") in {"ExpiredToken", "ExpiredTokenException"}:
        text += " (log in again)"
    return text


def code(error: BaseException) -> str:
    """Return AWS's error code of a ClientError, "" for anything else."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
