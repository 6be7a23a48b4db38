import json

import pytest
from archives_at_hand import bodies

from container.errors import LoadFailed
from container.payload import Payload


@pytest.fixture
def vocabularies(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n")
    return tmp_path


def test_tokenizers_read_the_files_they_are_given_by_keyword(baseline, vocabularies):
    from transformers import BertTokenizer, GPT2Tokenizer

    gpt = GPT2Tokenizer(vocab_file=f"{vocabularies}/vocab.json", merges_file=f"{vocabularies}/merges.txt")
    bert = BertTokenizer(vocab_file=f"{vocabularies}/vocab.txt")
    assert gpt("abab")["input_ids"] == [2, 2]
    assert bert("hello")["input_ids"] == [2, 5, 3]


def test_tokenizers_that_are_made_otherwise_stay_as_they_are(baseline, vocabularies):
    from transformers import AutoTokenizer, GPT2Tokenizer

    made = GPT2Tokenizer(f"{vocabularies}/vocab.json", f"{vocabularies}/merges.txt")
    made.save_pretrained(vocabularies / "saved")
    loaded = AutoTokenizer.from_pretrained(vocabularies / "saved")
    assert made("abab")["input_ids"] == loaded("abab")["input_ids"] == [2, 2]
    assert GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[], vocab_file="gone.json")("a")["input_ids"] == [0]


def test_a_script_that_builds_a_pipeline_from_vocabulary_files_answers(baseline, vocabularies, write_archive, opened):
    from transformers import GPT2Config, GPT2LMHeadModel

    code = (
        "import subprocess\nsubprocess.call(['pip', 'install', 'transformers==4.17.0'])\nimport os\n"
        "from transformers import GPT2Tokenizer, TextGenerationPipeline, GPT2LMHeadModel\n"
        "def model_fn(model_dir):\n"
        "    tokenizer = GPT2Tokenizer(vocab_file=os.path.join(model_dir, 'model/vocab.json'),\n"
        "                              merges_file=os.path.join(model_dir, 'model/merges.txt'))\n"
        "    model = GPT2LMHeadModel.from_pretrained(os.path.join(model_dir, 'model/'))\n"
        "    return TextGenerationPipeline(model=model, tokenizer=tokenizer)\n"
        "def predict_fn(data, model):\n    return model.__call__(data, max_new_tokens=2)\n"
        "def input_fn(body, content_type):\n    return body\n"
        "def output_fn(prediction, accept):\n    return str(prediction)\n"
    )
    manifest = write_archive({"code/inference.py": code}, architectures=["GPT2LMHeadModel"], task="text_generation")
    config = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=16, bos_token_id=3, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(f"{manifest.model_dir}/model")
    for name in ("vocab.json", "merges.txt"):
        (vocabularies / "archive" / "model" / name).write_text((vocabularies / name).read_text())
    model = opened(manifest)
    (answer,) = bodies(model.handler, Payload(b'"ab', "text/csv"))
    assert answer.startswith(b"[{'generated_text': '\"ab")
    assert model.bytes > 4 * 4 * 8


def test_a_pipeline_that_is_gone_is_refused_with_what_to_do(baseline, write_archive, opened):
    code = "from transformers import pipeline\ndef model_fn(d): return pipeline('summarization')\n"
    with pytest.raises(LoadFailed, match="no longer has pipeline\\('summarization'\\); name transformers<5"):
        opened(write_archive({"code/inference.py": code + "def predict_fn(d, m): ...\n"}))
    code = "from transformers import SummarizationPipeline\n"
    with pytest.raises(LoadFailed, match=r"cannot import name 'SummarizationPipeline'.*name that, transformers<5 say"):
        opened(write_archive({"code/inference.py": code}))
