"""The stand-in against a scripted container, asked by an unmodified boto3 client."""

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError, EventStreamError
from fake_container import FakeContainer, until


def refused(stand_in, *args, **kwargs):
    with pytest.raises(ClientError) as caught:
        stand_in.invoke(*args, **kwargs)
    return caught.value


def code_of(error):
    return error.response["Error"]["Code"]


def status_of(error):
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def test_the_first_call_loads_the_model_and_the_second_does_not(stand_in, container):
    local = stand_in()
    assert [local.say(), local.say()] == [b"echo:hello", b"echo:hello"]
    name = local.name_of("a.tar.gz")
    assert container.journal == [("load", name), ("invoke", name), ("invoke", name)]


def test_the_container_is_told_an_opaque_name_and_the_unpacked_folder(stand_in, container):
    local = stand_in()
    local.say("team/d.tar.gz")
    [(name, url)] = container.models.items()
    assert set(name) <= set("0123456789abcdef") and len(name) == 32
    assert url == str(local.base / "models" / name / "model")
    assert (local.base / "models" / name / "model" / "config.json").read_bytes() == b"team/d"


def test_a_leading_slash_names_the_same_model(stand_in, container):
    local = stand_in()
    local.say("team/d.tar.gz")
    local.say("/team/d.tar.gz")
    assert container.verbs() == ["load", "invoke", "invoke"]


def test_only_the_headers_the_platform_knows_reach_the_container(stand_in, container):
    local = stand_in()
    local.invoke(ContentType="text/csv", Accept="text/plain", CustomAttributes="task=x", InferenceId="id-7")
    sent = {name.lower(): value for name, value in container.headers[-1].items()}
    for own in ("host", "content-length", "accept-encoding", "user-agent"):
        sent.pop(own, None)
    assert sent == {
        "content-type": "text/csv",
        "accept": "text/plain",
        "x-amzn-sagemaker-custom-attributes": "task=x",
        "x-amzn-sagemaker-target-model": "a.tar.gz",
        "x-amzn-sagemaker-inference-id": "id-7",
    }


def test_the_answer_carries_type_variant_attributes_and_request_id(stand_in, container):
    container.answer_headers = {"X-Amzn-SageMaker-Custom-Attributes": "k=v", "X-Secret": "1"}
    answer = stand_in().invoke()
    assert answer["ContentType"] == "text/plain"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["CustomAttributes"] == "k=v"
    assert answer["ResponseMetadata"]["RequestId"]
    assert "x-secret" not in answer["ResponseMetadata"]["HTTPHeaders"]


def test_a_model_the_container_already_has_is_used_as_it_is(stand_in, container):
    local = stand_in()
    container.loads.append((409, b"{}"))
    container.models[local.name_of("a.tar.gz")] = "before"
    assert local.say() == b"echo:hello"
    assert container.verbs() == ["load", "invoke"]


def test_a_507_at_load_unloads_the_least_recently_used_and_tries_again(stand_in, container):
    container.capacity = 2
    local = stand_in(ping_every_s=60)
    for target in ("a.tar.gz", "b.tar.gz", "a.tar.gz", "c.tar.gz"):
        assert local.say(target) == b"echo:hello"
    a, b, c = (local.name_of(f"{key}.tar.gz") for key in "abc")
    assert container.journal[5:] == [("load", c), ("unload", b), ("load", c), ("invoke", c)]
    assert local.health[0].instance.names() == [a, c]


def test_a_507_at_invoke_unloads_another_model_and_tries_again(stand_in, container):
    local = stand_in()
    local.say("a.tar.gz")
    local.say("b.tar.gz")
    container.invokes.append((507, b"{}"))
    assert local.say("b.tar.gz") == b"echo:hello"
    a, b = local.name_of("a.tar.gz"), local.name_of("b.tar.gz")
    assert container.journal[4:] == [("invoke", b), ("unload", a), ("invoke", b)]


def test_a_507_with_nothing_to_unload_is_a_model_error(stand_in, container):
    container.capacity = 0
    error = refused(stand_in())
    assert (code_of(error), error.response["OriginalStatusCode"]) == ("ModelError", 507)
    assert container.verbs() == ["load"]


def test_a_model_in_use_is_not_unloaded_but_waited_for(stand_in, container):
    container.capacity = 1
    local = stand_in()
    local.say("a.tar.gz")
    gate = container.gates["invoke"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(local.say, "a.tar.gz")
        until(lambda: container.verbs() == ["load", "invoke", "invoke"])
        second = pool.submit(local.say, "b.tar.gz")
        until(lambda: container.verbs()[-1] == "load")
        assert "unload" not in container.verbs()
        gate.set()
        assert (first.result(), second.result()) == (b"echo:hello", b"echo:hello")
    assert container.verbs()[-4:] == ["load", "unload", "load", "invoke"]


def test_a_load_waits_for_another_load_that_took_the_room_and_then_takes_its_place(stand_in, container):
    container.capacity = 1
    local = stand_in()
    gate = container.gates["load"] = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(local.say, f"{key}.tar.gz") for key in ("a", "b", "c", "team/d")]
        until(lambda: container.verbs() == ["load"] * 4)
        gate.set()
        assert [call.result() for call in calls] == [b"echo:hello"] * 4
    assert container.verbs().count("unload") == 3


def test_a_model_the_container_has_lost_is_loaded_again_once(stand_in, container):
    local = stand_in(ping_every_s=60)
    local.say()
    container.models.clear()
    assert local.say() == b"echo:hello"
    assert container.verbs() == ["load", "invoke", "invoke", "load", "invoke"]
    container.invokes.extend([(404, b"x"), (404, b"y")])
    error = refused(local)
    assert (code_of(error), error.response["OriginalStatusCode"]) == ("ModelError", 404)


def test_ten_callers_of_a_new_model_cause_one_load(stand_in, container):
    gate = container.gates["load"] = threading.Event()
    local = stand_in()
    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(local.say) for _ in range(10)]
        until(lambda: container.journal)
        gate.set()
        assert {call.result() for call in calls} == {b"echo:hello"}
    assert container.verbs().count("load") == 1


def test_loads_of_different_models_run_side_by_side(stand_in, container):
    gate = container.gates["load"] = threading.Event()
    local = stand_in()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(local.say, f"{key}.tar.gz") for key in "ab"]
        until(lambda: container.verbs() == ["load", "load"])
        gate.set()
        assert [call.result() for call in calls] == [b"echo:hello"] * 2


def test_a_load_over_the_callers_time_is_429_and_goes_on(stand_in, container):
    gate = container.gates["load"] = threading.Event()
    local = stand_in(invoke_s=0.2)
    error = refused(local)
    assert (code_of(error), status_of(error)) == ("ModelNotReadyException", 429)
    gate.set()
    until(lambda: container.models)
    assert local.say() == b"echo:hello"
    assert container.verbs() == ["load", "invoke"]


def test_botos_usual_retries_outwait_a_slow_load(stand_in, container):
    gate = container.gates["load"] = threading.Event()
    local = stand_in(invoke_s=0.2)
    local.client = local.new_client(retries={"mode": "legacy"})
    threading.Timer(0.5, gate.set).start()
    answer = local.invoke()
    assert answer["Body"] == b"echo:hello"
    assert answer["ResponseMetadata"]["RetryAttempts"] > 0


def test_an_invoke_over_its_time_is_a_model_error_with_status_0(stand_in, container):
    local = stand_in(invoke_s=0.3)
    local.say()
    container.gates["invoke"] = threading.Event()
    error = refused(local)
    assert (code_of(error), status_of(error)) == ("ModelError", 424)
    assert error.response["OriginalStatusCode"] == 0
    assert "timed out" in error.response["OriginalMessage"]


def test_a_load_over_its_time_fails_and_may_be_tried_again(stand_in, container):
    gate = container.gates["load"] = threading.Event()
    local = stand_in(load_s=0.2)
    error = refused(local)
    assert (code_of(error), error.response["OriginalStatusCode"]) == ("ModelError", 0)
    gate.set()
    assert local.say() == b"echo:hello"


@pytest.mark.parametrize("status, side", [(400, "client"), (500, "server"), (503, "server")])
def test_what_the_container_refuses_is_a_model_error_with_all_its_members(stand_in, container, status, side):
    local = stand_in()
    container.invokes.append((status, b'{"message": "why"}'))
    error = refused(local)
    assert (code_of(error), status_of(error)) == ("ModelError", 424)
    assert error.response["OriginalStatusCode"] == status
    assert error.response["OriginalMessage"] == '{"message": "why"}'
    assert error.response["LogStreamArn"].endswith(":log-group:/aws/sagemaker/Endpoints/local")
    assert error.response["Message"].startswith(f"Received {side} error ({status}) from primary with message")


def test_a_failed_load_is_a_model_error_and_the_next_call_tries_again(stand_in, container):
    local = stand_in()
    container.loads.append((500, b"model_fn raised"))
    assert refused(local).response["OriginalMessage"] == "model_fn raised"
    assert local.say() == b"echo:hello"
    assert container.verbs() == ["load", "load", "invoke"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target": None}, "is missing a target model header"),
        ({"name": "other"}, "Endpoint other of account 123456789012 not found."),
        ({"target": "nobody.tar.gz"}, "Failed to download model data"),
        ({"target": "../a.tar.gz"}, "Failed to download model data"),
        ({"target": "x" * 1025}, "less than or equal to 1024"),
        ({"CustomAttributes": "x" * 1025}, "less than or equal to 1024"),
    ],
)
def test_a_malformed_call_is_a_validation_error_and_never_reaches_the_container(stand_in, container, change, message):
    error = refused(stand_in(), **change)
    assert (code_of(error), status_of(error)) == ("ValidationError", 400)
    assert message in error.response["Error"]["Message"] and message in error.response["Message"]
    assert container.journal == []


def test_a_body_over_the_limit_is_413_before_the_container_sees_it(stand_in, container):
    error = refused(stand_in(body_bytes=1000), body=b"x" * 1001)
    assert (code_of(error), status_of(error)) == ("413", 413)
    assert container.journal == []


def test_a_broken_archive_is_told_from_a_missing_one(stand_in, container):
    local = stand_in()
    (local.prefix / "broken.tar.gz").write_bytes(b"no gzip")
    error = refused(local, "broken.tar.gz")
    assert code_of(error) == "ValidationError"
    assert "Failed to extract model data archive broken.tar.gz" in error.response["Message"]
    assert list((local.base / "models").iterdir()) == []


def test_a_rebuilt_archive_is_loaded_under_a_new_name_and_the_old_one_goes(stand_in, container, write_archive):
    local = stand_in()
    local.say()
    old = local.name_of("a.tar.gz")
    write_archive(local.prefix / "a.tar.gz", {"config.json": b"a newer one"})
    local.say()
    assert list(container.models) == [local.name_of("a.tar.gz")]
    assert ("unload", old) in container.journal


def test_a_single_model_endpoint_calls_invocations_and_refuses_a_target(stand_in, container):
    local = stand_in(single=True)
    assert local.say(None) == b"echo:hello"
    error = refused(local, "a.tar.gz")
    assert error.response["Error"]["Message"].endswith("does not support target model header.")
    assert container.journal == [("invoke", None)]


def test_a_second_container_takes_the_next_model_and_keeps_it(stand_in, container):
    other = FakeContainer()
    try:
        local = stand_in(other)
        for target in ("a.tar.gz", "b.tar.gz", "a.tar.gz", "b.tar.gz"):
            local.say(target)
        assert (container.verbs(), other.verbs()) == (["load", "invoke", "invoke"],) * 2
    finally:
        local.close()
        other.close()


def test_a_connection_that_breaks_is_a_model_error(stand_in, container):
    local = stand_in()
    container.invokes.append((0, b""))
    error = refused(local)
    assert (code_of(error), error.response["OriginalStatusCode"]) == ("ModelError", 0)
    assert "connection" in error.response["OriginalMessage"]


def test_the_status_page_tells_archives_containers_and_what_is_loaded(stand_in, container):
    local = stand_in()
    local.say("team/d.tar.gz")
    with urllib.request.urlopen(local.url) as page:
        status = json.load(page)
    assert sorted(status["archives"]) == ["a.tar.gz", "b.tar.gz", "c.tar.gz", "team/d.tar.gz"]
    [only] = status["containers"]
    assert (only["state"], only["loaded"], only["inFlight"]) == ("healthy", ["team/d.tar.gz"], 0)


def test_a_stream_arrives_in_the_pieces_the_container_sent(stand_in, container):
    container.chunks = [b"Down, ", b"down, ", b"down."]
    answer = stand_in(single=True).client.invoke_endpoint_with_response_stream(EndpointName="local", Body=b"x")
    assert answer["ContentType"] == "text/plain"
    assert [event["PayloadPart"]["Bytes"] for event in answer["Body"]] == container.chunks


def test_a_stream_that_breaks_off_ends_in_an_error_event(stand_in, container):
    container.chunks = [b"Down, ", None]
    answer = stand_in(single=True).client.invoke_endpoint_with_response_stream(EndpointName="local", Body=b"x")
    events = iter(answer["Body"])
    assert next(events)["PayloadPart"]["Bytes"] == b"Down, "
    with pytest.raises(EventStreamError) as caught:
        next(events)
    answer["Body"].close()
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"


def test_a_stream_refused_before_its_first_byte_is_a_model_error(stand_in, container):
    container.invokes.append((400, b"bad"))
    with pytest.raises(ClientError) as caught:
        stand_in(single=True).client.invoke_endpoint_with_response_stream(EndpointName="local", Body=b"x")
    assert (code_of(caught.value), caught.value.response["OriginalMessage"]) == ("ModelError", "bad")
