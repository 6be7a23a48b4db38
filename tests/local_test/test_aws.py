"""Errors in AWS's shape, where boto3 itself shows them only in part."""

import json

import pytest

from local_test import aws

PLACE = aws.Place("cats", "eu-west-1", "1")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"x" * 5000])
def test_a_body_that_is_no_short_text_is_left_out_of_the_message(body):
    error = aws.model_error(PLACE, 500, body)
    assert error.fields["Message"].startswith("Received server error (500) from primary and could not load the entire")
    assert len(error.fields["Message"]) <= 2048 and len(error.fields["OriginalMessage"]) <= 2048


def test_an_error_is_told_by_header_and_by_a_body_with_a_capital_message():
    error = aws.model_error(PLACE, 400, b"no")
    assert error.headers() == {"x-amzn-ErrorType": "ModelError", "Content-Type": "application/json"}
    assert json.loads(error.body()) == {
        "Message": 'Received client error (400) from primary with message "no". See '
        "https://eu-west-1.console.aws.amazon.com/cloudwatch/home?region=eu-west-1#logEventViewer:"
        "group=/aws/sagemaker/Endpoints/cats in account 1 for more information.",
        "OriginalStatusCode": 400,
        "OriginalMessage": "no",
        "LogStreamArn": "arn:aws:logs:eu-west-1:1:log-group:/aws/sagemaker/Endpoints/cats",
    }


def test_headers_are_found_whatever_their_case_and_only_those_asked_for():
    class Caseless(dict):
        def get(self, key, default=None):
            return super().get(key.lower(), default)

    given = Caseless({"content-type": "a/b", "x-other": "1"})
    assert aws.pick(given, aws.FORWARDED) == {"Content-Type": "a/b"}
