import json
import subprocess
import sys

import pytest
import torch
import transformers

from container.errors import BadInput
from container.handler import Claim
from handlers import generators
from handlers.router import Member, Router
from handlers.sampling import Row, Taste, choose
from handlers.text_generation import TextGeneration
from tests.handlers.models import TEXT, ask, byte_pairs, gpt2, loaded, payload

PROMPTS = ["the ship", "a cook waits for the crew and the tide", "berth", "and the", "its"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def ours(path):
    return loaded(TextGeneration(), path)


@pytest.fixture(scope="module")
def theirs(path):
    return transformers.pipeline("text-generation", model=str(path), device="cpu")


def written(handler, inputs, **parameters):
    answer = ask(handler, {"inputs": inputs, "parameters": parameters})
    if isinstance(inputs, str):
        assert [list(each) for each in answer] == [["generated_text"]]
        return answer[0]["generated_text"]
    return [each[0]["generated_text"] for each in answer]


def test_greedy_texts_are_those_of_the_pipeline_each_alone(ours, theirs):
    wanted = [theirs(prompt, max_new_tokens=30, do_sample=False)[0]["generated_text"] for prompt in PROMPTS]
    assert written(ours, PROMPTS, max_new_tokens=30) == wanted
    assert len({text[-10:] for text in wanted}) > 2, "the model says the same whatever it is asked"


def test_without_parameters_twenty_tokens_are_added_to_the_whole_prompt(ours, theirs):
    text = written(ours, PROMPTS[0])
    assert text == theirs(PROMPTS[0], max_new_tokens=20, do_sample=False)[0]["generated_text"]
    assert text.startswith(PROMPTS[0])
    assert written(ours, PROMPTS[0], return_full_text=False) == text[len(PROMPTS[0]) :]


def test_requests_in_a_batch_get_what_they_asked_for_whatever_their_neighbours_ask(ours):
    asked = [
        {"inputs": PROMPTS[:2], "parameters": {"max_new_tokens": 5}},
        {"inputs": PROMPTS[2], "parameters": {"max_new_tokens": 25, "return_full_text": False}},
        {"inputs": PROMPTS[3], "parameters": {"do_sample": True, "seed": 3, "max_new_tokens": 15}},
        {"inputs": PROMPTS[4], "parameters": {"repetition_penalty": 1.7}},
    ]
    requests = [ours.decode(payload(each)) for each in asked]
    assert ours.predict(requests) == [ours.predict([request])[0] for request in requests]


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_is_applied_as_transformers_does(ours, theirs, penalty):
    wanted = theirs(PROMPTS[1], max_new_tokens=15, do_sample=False, repetition_penalty=penalty)[0]["generated_text"]
    assert written(ours, PROMPTS[1], max_new_tokens=15, repetition_penalty=penalty) == wanted


def test_a_seed_gives_the_same_text_again_and_another_seed_another(ours):
    drawn = [written(ours, PROMPTS[0], do_sample=True, seed=seed, temperature=2.0) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    alone = written(ours, PROMPTS[:1], do_sample=True, seed=1, temperature=2.0)
    among = written(ours, PROMPTS, do_sample=True, seed=1, temperature=2.0)
    assert among[0] == alone[0] == drawn[0]


def test_without_a_seed_texts_differ(ours):
    assert len({written(ours, PROMPTS[0], do_sample=True, temperature=5.0, top_k=0) for _ in range(3)}) == 3


def test_sampling_one_token_at_most_is_greedy(ours):
    greedy = written(ours, PROMPTS[0])
    assert written(ours, PROMPTS[0], do_sample=True, top_k=1) == greedy
    assert written(ours, PROMPTS[0], do_sample=True, top_p=1e-6) == greedy


def test_what_may_be_drawn_and_how_often_is_what_transformers_warpers_leave():
    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 2
    taste = Taste(do_sample=True, temperature=1.7, top_k=12, top_p=0.8, repetition_penalty=1.4)
    row = Row([3, 5, int(logits.argmax())], 1, taste, seed=0)
    warped = logits.clone()
    seen = torch.tensor([row.prompt])
    for warper in (
        transformers.RepetitionPenaltyLogitsProcessor(1.4),
        transformers.TemperatureLogitsWarper(1.7),
        transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.8),
    ):
        warped = warper(seen, warped)
    wanted = warped.softmax(-1)[0]
    drawn = torch.zeros(40)
    for _ in range(4000):
        drawn[choose(logits, [row])[0]] += 1 / 4000
    assert set(drawn.nonzero().flatten().tolist()) == set(wanted.nonzero().flatten().tolist())
    torch.testing.assert_close(drawn, wanted, atol=0.04, rtol=0)


def test_a_text_ends_before_the_first_stop_text(ours):
    whole = written(ours, PROMPTS[1], max_new_tokens=30, return_full_text=False)
    middle, later = whole[8:11], whole[20:23]
    stopped = written(ours, PROMPTS[1], max_new_tokens=30, return_full_text=False, stop=[later, middle])
    assert stopped == whole[: min(whole.find(middle), whole.find(later))]
    assert stopped == written(ours, PROMPTS[1], max_new_tokens=30, return_full_text=False, stop_sequences=middle)


def test_a_stop_text_ends_the_work_and_not_only_the_answer(ours):
    whole = written(ours, PROMPTS[1], max_new_tokens=30, return_full_text=False)
    request = payload({"inputs": PROMPTS[1], "parameters": {"max_new_tokens": 30, "stop": whole[5:8]}})
    assert len(list(ours.steps([ours.decode(request)]))) < 20


def test_a_stop_text_in_the_prompt_stops_nothing(ours):
    assert written(ours, PROMPTS[0], stop=["ship"]).startswith(PROMPTS[0])


def test_the_end_token_ends_the_text_and_is_not_shown(tmp_path, ours, path):
    prompt = ours.decode(payload(PROMPTS[0])).prompts[0]
    model = transformers.GPT2LMHeadModel.from_pretrained(str(path)).eval()
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, pad_token_id=0, attention_mask=torch.ones(1, len(prompt))
    )
    tokens = out[0, len(prompt) :].tolist()
    end = next(token for token in reversed(tokens) if tokens.index(token) > 2)
    for name, where in (("generation_config.json", "a"), ("config.json", "b")):
        copied = tmp_path / where
        gpt2(copied)
        (copied / "generation_config.json").unlink()
        found = json.loads((copied / name).read_text()) if (copied / name).exists() else {}
        (copied / name).write_text(json.dumps({**found, "eos_token_id": [end] if where == "a" else end}))
        words = transformers.AutoTokenizer.from_pretrained(str(path))
        wanted = words.decode(tokens[: tokens.index(end)])
        assert written(loaded(TextGeneration(), copied), PROMPTS[0], return_full_text=False) == wanted


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"max_new_tokens": 100},
            r"inputs\[0\] is (\d+) tokens and 100 more are asked for: \d+ together, .* 64 positions",
        ),
        ({"max_length": 2}, r"parameter max_length is 2, but inputs\[0\] alone is"),
        ({"max_new_tokens": 0}, "parameter max_new_tokens is a number, 0: Expected `int` >= 1"),
        ({"temperature": 0}, "parameter temperature is a number, 0: Expected `float` > 0"),
        ({"top_p": 1.5}, "parameter top_p is a number, 1.5: Expected `float` <= 1"),
        ({"top_k": -1}, "parameter top_k is a number, -1"),
        ({"seed": -1}, "parameter seed is a number, -1"),
        ({"stop": [1]}, "parameter stop is a list of 1"),
        ({"stop": ["x"] * 65}, "parameter stop holds 65 texts, the longest of 1 characters; at most 64"),
        ({"stop": ["x", "y" * 1025]}, "parameter stop holds 2 texts, the longest of 1025 characters"),
        ({"stop": [""]}, "parameter stop holds an empty text"),
        ({"max_tokens": 3}, r"unknown parameter 'max_tokens'; did you mean max_new_tokens\?"),
        ({"num_return_sequences": 2}, r"parameter num_return_sequences \(a number, 2\) is not done here"),
        ({"num_beams": 4}, "parameter num_beams"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(ours, parameters, said):
    with pytest.raises(BadInput, match=said):
        ours.decode(payload({"inputs": PROMPTS[0] * 2, "parameters": parameters}))


def test_asking_for_one_of_something_asks_for_nothing_more(ours):
    assert written(ours, PROMPTS[0], num_return_sequences=1, num_beams=1) == written(ours, PROMPTS[0])


def test_a_prompt_that_exactly_fits_is_served_to_the_last_position(ours):
    tokens = len(ours.decode(payload(TEXT[:40])).prompts[0])
    assert len(written(ours, TEXT[:40], max_new_tokens=64 - tokens)) > 40
    assert written(ours, TEXT[:40], max_length=64) == written(ours, TEXT[:40], max_new_tokens=64 - tokens)


def test_an_empty_prompt_begins_with_the_token_that_begins_texts_or_is_refused(tmp_path, ours):
    with pytest.raises(BadInput, match=r"inputs\[0\] is empty and the model has no token to begin with"):
        ours.decode(payload({"inputs": ""}))  # 50256 is not in a vocabulary of 330
    begins = loaded(TextGeneration(), gpt2(tmp_path, bos_token_id=0))
    assert written(begins, "") != ""


def test_steps_give_way_between_tokens_and_may_go_on_on_another_thread(ours):
    from threading import Thread

    request = ours.decode(payload({"inputs": PROMPTS, "parameters": {"max_new_tokens": 10}}))
    steps, seen = ours.steps([request]), []
    while not seen or not isinstance(seen[-1], list):
        thread = Thread(target=lambda: seen.append(next(steps)))
        thread.start()
        thread.join()
        assert not torch.is_inference_mode_enabled()
    assert len(seen) == 12, "what the cache takes, ten tokens, the answer"
    assert seen[-1] == ours.predict([request])


def test_more_rows_than_a_cache_holds_are_served_in_parts(ours, monkeypatch):
    wanted = written(ours, PROMPTS, max_new_tokens=12)
    monkeypatch.setattr(generators, "_CACHE_TOKENS", 40)
    monkeypatch.setattr(generators, "_PREFILL_TOKENS", 4)
    assert written(ours, PROMPTS, max_new_tokens=12) == wanted


@pytest.mark.parametrize("task", ["", "gen"], ids=["alone", "behind a router"])
def test_whoever_waits_for_a_place_in_a_cache_that_is_too_small_is_known(ours, task):
    handler = Router({task: Member(ours, True)}, {task: task}) if task else ours
    chosen = {"task": task} if task else {}
    asked = [payload({"inputs": each, "parameters": {"max_new_tokens": 8}, **chosen}) for each in PROMPTS[:3]]
    steps = handler.steps([handler.decode(each) for each in asked])
    claim = next(steps)
    assert isinstance(claim, Claim)
    claim.granted = claim.least
    lacking = []
    for step in steps:
        if not isinstance(step, list):
            lacking.append([place for place in range(3) if claim.lacks(place)])
    assert [0, 2] in lacking, "the longest goes first"
    assert lacking[-1] == [], "in the end nobody waits"


def test_the_size_is_what_the_caches_must_hold(ours):
    request = ours.decode(payload({"inputs": PROMPTS[:2], "parameters": {"max_new_tokens": 7}}))
    assert ours.size(request) == sum(map(len, request.prompts)) + 14


def test_the_example_is_answered(ours):
    (answer,) = ours.predict([ours.decode(TextGeneration.example)])
    assert list(answer[0]) == ["generated_text"]


def test_another_family_is_served_by_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=330,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPTNeoForCausalLM(config)
    model.save_pretrained(tmp_path)
    byte_pairs(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    handler = loaded(TextGeneration(), tmp_path)
    assert (handler.reentrant, TextGeneration.native(tmp_path)) == (False, False)
    pipe = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    wanted = [pipe(prompt, max_new_tokens=6, do_sample=False)[0]["generated_text"] for prompt in PROMPTS[:2]]
    assert written(handler, PROMPTS[:2], max_new_tokens=6) == wanted
    drawn = [written(handler, PROMPTS[0], do_sample=True, seed=seed, temperature=3.0) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    stopped = written(handler, PROMPTS[0], max_new_tokens=6, stop=wanted[0][len(PROMPTS[0]) + 3 :][:2])
    assert len(PROMPTS[0]) <= len(stopped) < len(wanted[0])
    with pytest.raises(BadInput, match="64 positions"):
        ask(handler, {"inputs": "a", "parameters": {"max_new_tokens": 64}})


def test_our_own_network_needs_no_transformers(path):
    script = f"""
import sys
from pathlib import Path
from container.handler import Context
from handlers.text_generation import TextGeneration
handler = TextGeneration()
handler.load(Path({str(path)!r}), Context("m"))
handler.predict([handler.decode(TextGeneration.example)])
assert handler.reentrant
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("temperature", [1e-30, 1e-300])
def test_a_temperature_near_zero_is_greedy(ours, temperature):
    greedy = written(ours, PROMPTS[0])
    assert written(ours, PROMPTS[0], do_sample=True, temperature=temperature) == greedy
    assert written(ours, PROMPTS[0], do_sample=True, temperature=temperature, top_p=1e-12) == greedy


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["a"] * 257, "inputs has 257 members; at most 256"),
        (["a", "b" * 65_537], r"inputs\[1\] is 65537 characters; the model has 64 positions"),
    ],
)
def test_prompts_that_could_only_be_counted_at_great_cost_are_refused_uncounted(ours, inputs, said):
    with pytest.raises(BadInput, match=said):
        ours.decode(payload(inputs))
