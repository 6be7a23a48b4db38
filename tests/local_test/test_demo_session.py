"""The demo's conversation with a container that answers nonsense: it must come to its end and say what is wrong."""

from local_test.demo_session import Session, run


def session_with(local, tmp_path):
    return Session(local.url, "local", local.health[0].instance.container.url, tmp_path, {})


def test_every_wrong_answer_is_named_and_none_ends_the_demo(stand_in, container, tmp_path, write_archive, capsys):
    local = stand_in()
    for name in ("sentences", "digits", "celsius", "prose"):
        write_archive(local.prefix / f"{name}.tar.gz", {"config.json": name.encode()})
    container.invokes.extend(
        [
            (200, b"[[1.0], [1.0], [1.0]]"),
            (200, b"[[1.0], [1.0], [1.0]]"),
            (200, b'[{"label": "two", "score": 0.9}]'),
            (200, b'[{"label": "two", "score": 0.9}]'),
            (200, b"[1, 2, 3]"),
            (200, b"[1, 2, 3]"),
            (500, b"the writer is ill"),
            (200, b"no json"),
        ]
    )
    wrong = run(session_with(local, tmp_path))
    said = capsys.readouterr().out
    assert len(wrong) == 7 and all(f"WRONG  {sentence}" in said for sentence in wrong)
    assert wrong[0].startswith("expected three vectors of 384 numbers")
    assert wrong[1] == "digits: the image of a seven is called so"
    assert wrong[2].startswith("celsius")
    assert "the writer is ill" in wrong[3]
    assert wrong[4:6] == ["memory: sentences sank from not loaded to not loaded", "memory: prose is on not loaded"]
    assert "\x1b" not in said
