"""The demo's archives answer rightly through transformers alone, and are kept while nothing changed."""

import io
import json
import tarfile

import pytest
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from local_test import archives, demo_checks, train_digits, train_prose
from local_test.learning import NotLearnt

PAYLOADS = train_prose.TEXT.parent.parent / "payloads"
RHYME = (
    "Twinkle, twinkle, little star, how I wonder what you are! Up above the world so high, like a diamond in the sky."
)


def test_a_writer_knows_its_text_by_heart(tmp_path):
    recipe = train_prose.Recipe(vocabulary=300, width=64, layers=2, window=64, batch=8, steps=150, rate=5e-3)
    train_prose.train(RHYME, tmp_path, recipe)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    asked = tokenizer("Twinkle, twinkle, little", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=20, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(said[0])
    assert RHYME.startswith(text) and len(text) > len("Twinkle, twinkle, little star,")
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]


def test_a_writer_that_has_not_learnt_is_not_saved(tmp_path):
    recipe = train_prose.Recipe(vocabulary=300, width=32, layers=1, window=64, steps=1)
    with pytest.raises(NotLearnt, match="train it longer"):
        train_prose.train(RHYME, tmp_path, recipe)
    assert list(tmp_path.iterdir()) == []


def test_the_reader_names_digits_it_was_not_trained_on(tmp_path):
    assert train_digits.train(tmp_path, train_digits.Recipe()) >= 0.97
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    named = []
    for digit in range(10):
        inputs = processor(Image.open(io.BytesIO(train_digits.held_out(digit))), return_tensors="pt")
        named.append(model.config.id2label[int(model(**inputs).logits.argmax())])
    assert named == list(train_digits.NAMES)


def test_the_same_recipe_gives_the_same_weights(tmp_path):
    recipe = train_digits.Recipe(epochs=1, least_accuracy=0)
    saved = []
    for name in ("a", "b"):
        train_digits.train(tmp_path / name, recipe)
        saved.append((tmp_path / name / "model.safetensors").read_bytes())
    assert saved[0] == saved[1]


def test_the_payloads_are_what_the_demo_checks():
    assert (PAYLOADS / "digit.png").read_bytes() == train_digits.held_out(demo_checks.DIGIT)
    assert train_digits.NAMES[demo_checks.DIGIT] == demo_checks.DIGIT_NAME
    sentences = json.loads((PAYLOADS / "sentences.json").read_text())
    assert sentences == {"inputs": [demo_checks.SENTENCE, demo_checks.NEAR, demo_checks.FAR]}
    prose = json.loads((PAYLOADS / "prose.json").read_text())
    assert prose["inputs"] == demo_checks.PROMPT
    assert demo_checks.PROMPT in train_prose.TEXT.read_text(encoding="utf-8")
    assert (PAYLOADS / "celsius.csv").read_text().split() == [str(c) for c in demo_checks.CELSIUS]


@pytest.fixture
def only(monkeypatch, tmp_path):
    """One model made from one source file; returns (source, the list of times it was filled)."""
    source = tmp_path / "source.txt"
    source.write_text("one")
    filled = []

    def fill(folder):
        filled.append(source.read_text())
        (folder / "code").mkdir()
        (folder / "code" / "content").write_text(filled[-1])

    monkeypatch.setattr(archives, "MODELS", {"only": archives.Model(fill, (source,))})
    return source, filled


def test_an_archive_is_kept_until_its_source_changes_or_it_is_lost(only, tmp_path):
    source, filled = only
    folder = tmp_path / "archives"
    fresh = [archives.build_all(folder)[0].fresh, archives.build_all(folder)[0].fresh]
    source.write_text("two")
    fresh.append(archives.build_all(folder)[0].fresh)
    (folder / "only.tar.gz").unlink()
    fresh.append(archives.build_all(folder)[0].fresh)
    assert (fresh, filled) == ([True, False, True, True], ["one", "two", "two"])
    assert sorted(p.name for p in folder.iterdir()) == ["only.recipe", "only.tar.gz"]


def test_a_build_that_fails_leaves_no_archive_to_be_taken_for_a_good_one(only, tmp_path):
    source, _ = only
    folder = tmp_path / "archives"
    archives.build_all(folder)
    before = (folder / "only.tar.gz").read_bytes()
    source.unlink()
    with pytest.raises(FileNotFoundError):
        archives.build_all(folder)
    assert (folder / "only.tar.gz").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["only.recipe", "only.tar.gz"]


def test_packing_the_same_folder_twice_gives_the_same_bytes(tmp_path):
    folder = tmp_path / "folder"
    (folder / "code").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(5000))
    (folder / "code" / "inference.py").write_text("x = 1\n")
    archives.pack(folder, tmp_path / "a.tar.gz")
    (folder / "weights.bin").touch()
    archives.pack(folder, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert [(m.name, m.size, m.mtime) for m in tar] == [("code/inference.py", 6, 0), ("weights.bin", 5000, 0)]


def test_the_small_archives_hold_safetensors_and_no_pickle(tmp_path):
    archives.MODELS["celsius"].fill(tmp_path)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["code/inference.py", "weights.safetensors"]
    with safe_open(tmp_path / "weights.safetensors", "np") as weights:
        assert weights.get_tensor("bias").tolist() == [32.0]
