import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bench import archives, texts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "CACHE", tmp_path / "archives")
    return tmp_path / "archives"


def test_sentences_are_different_and_of_the_tokens_they_promise():
    tokenizer = Tokenizer.from_file(str(archives.minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    sentences = texts.sentences(64)

    assert len(set(sentences)) == 64
    assert {len(tokenizer.encode(sentence).ids) for sentence in sentences} == {texts.TOKENS}


def test_the_echo_body_has_a_hundred_bytes():
    assert len(archives.ECHO_BODY) == 100


def test_tiny_models_are_built_once_differ_by_seed_and_share_a_tokenizer_unless_asked(cache):
    first, second, own = archives.tiny(0), archives.tiny(1), archives.tiny(1, own_tokenizer=True)
    built = (first / "model.safetensors").stat().st_mtime_ns

    assert archives.tiny(0) == first and (first / "model.safetensors").stat().st_mtime_ns == built
    weights = [load_file(folder / "model.safetensors") for folder in (first, second, own)]
    name = "embeddings.position_embeddings.weight"
    assert not weights[0][name].equal(weights[1][name])
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in (first, second, own)]
    assert tokenizers[0] == tokenizers[1] != tokenizers[2]
    assert not [folder for folder in cache.iterdir() if folder.name.startswith(".")]


def test_a_tiny_tokenizer_reads_words_as_bert_does():
    tokenizer = Tokenizer.from_file(str(archives.tiny(0) / "tokenizer.json"))

    assert tokenizer.encode("The first zq").tokens == ["[CLS]", "the", "first", "z", "##q", "[SEP]"]


def test_placing_an_archive_copies_no_bytes(tmp_path):
    archives.place(archives.noop(), tmp_path / "base" / "models" / "a" / "model")

    there = tmp_path / "base" / "models" / "a" / "model" / "code" / "handler.py"
    assert there.samefile(archives.noop() / "code" / "handler.py")
