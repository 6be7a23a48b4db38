"""Health as the platform sees it."""

import pytest
from botocore.exceptions import ClientError
from fake_container import until


def test_three_missed_pings_in_a_row_take_the_container_out_of_service(stand_in, container):
    local = stand_in(ping_every_s=60)
    [health] = local.health
    container.ping_status = 503
    states = []
    for _ in range(3):
        health.round()
        states.append(health.state)
    assert states == ["healthy", "healthy", "unhealthy"]
    with pytest.raises(ClientError) as caught:
        local.invoke()
    assert caught.value.response["Error"]["Code"] == "ServiceUnavailable"
    assert "/ping answered 503" in caught.value.response["Message"]
    container.ping_status = 200
    health.round()
    assert local.say() == b"echo:hello"


def test_one_good_ping_between_bad_ones_keeps_it_in_service(stand_in, container):
    [health] = stand_in(ping_every_s=60).health
    for status in (503, 503, 200, 503, 503):
        container.ping_status = status
        health.round()
    assert health.state == "healthy"


def test_models_left_from_an_earlier_run_are_adopted_and_may_be_unloaded(stand_in, container):
    container.models["0ld"] = "somewhere"
    container.capacity = 1
    local = stand_in()
    assert local.say() == b"echo:hello"
    assert container.verbs() == ["load", "unload", "load", "invoke"]


def test_a_list_of_several_pages_is_read_to_its_end(stand_in, container):
    container.page_size = 2
    container.models = dict.fromkeys("edcba", "x")
    local = stand_in()
    assert sorted(local.health[0].instance.names()) == list("abcde")


def test_a_container_that_cannot_list_does_not_come_into_service(stand_in, container):
    local = stand_in(ping_every_s=60, startup_s=0.1)
    [health] = local.health
    health.state = "starting"
    container.list_status = 404
    assert not health.wait_in_service()
    assert (health.state, health.reason) == ("starting", "GET /models answered 404")


def test_the_background_rounds_notice_what_the_container_has_lost(stand_in, container):
    local = stand_in(ping_every_s=0.01)
    local.say()
    [health] = local.health
    health.start()
    container.models.clear()
    until(lambda: not health.instance.names())
    assert local.say() == b"echo:hello"
    assert container.verbs() == ["load", "invoke", "load", "invoke"]
