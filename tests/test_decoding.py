"""Own decoding draws what `generate` draws; on a GPU its step is recorded."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from seq2seq_models import EOS, PAD, build_model
from transformers import GenerationConfig

from agr_trl import sampling
from agr_trl.decoding import decode
from agr_trl.encode_once import encode_once
from agr_trl.sampling import GREEDY, Sampler, sample_completions

TOKENS = 9
# Two products of two queries each and one of one, padded to the longest.
PROMPTS = torch.tensor(
    [[4, 5, EOS, 0], [6, 7, 8, EOS], [4, 5, EOS, 0], [6, 7, 8, EOS], [9, EOS, 0, 0]]
)
CONFIG = GenerationConfig(
    **GREEDY, max_new_tokens=TOKENS, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model_and_inputs(family, device="cpu", adapter=False):
    model = build_model(family, seed=3).to(device).eval()
    if adapter:
        lora = LoraConfig(
            task_type="SEQ_2_SEQ_LM", init_lora_weights=False, target_modules=["q", "v"]
        )
        model = get_peft_model(model, lora).eval()
    ids = PROMPTS.to(device)
    return model, ids, ids.ne(PAD).long(), torch.zeros(len(ids), 1, dtype=torch.long, device=device)


def by_own_step(model, ids, mask, prefix, temperature, max_tokens=TOKENS):
    options = {"max_tokens": max_tokens, "end_tokens": [EOS], "pad_token": PAD}
    with torch.no_grad(), encode_once(model):
        return decode(model, ids, mask, prefix, Sampler(temperature).draw, **options)


def up_to_end(tokens, logps):
    """Return each row's tokens and log-probabilities to its end; behind it nothing is meant."""
    lengths = [[*row, EOS].index(EOS) + 1 for row in tokens.tolist()]
    rows = zip(tokens.tolist(), logps.tolist(), lengths, strict=True)
    return [(ids[:length], row[:length]) for ids, row, length in rows]


def assert_scored_alike(model, ids, mask, tokens, logps, temperature, tolerance):
    """Check the log-probabilities of draws against one pass over all of them."""
    given = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given).logits
    expected = (logits / temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert tokens.shape == logps.shape
    for (_, own), (_, by_pass) in zip(
        up_to_end(tokens, logps), up_to_end(tokens, expected), strict=True
    ):
        assert own == pytest.approx(by_pass, abs=tolerance)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", ["t5", "flan-t5", "mt5"])
def test_it_draws_what_generate_draws(family, adapter, monkeypatch):
    inputs = model_and_inputs(family, adapter=adapter)
    torch.manual_seed(5)
    found = up_to_end(*sample_completions(*inputs, CONFIG, 1.0))
    monkeypatch.setattr(sampling, "_OWN_DECODING", ())
    monkeypatch.setattr(sampling, "decode", None)
    torch.manual_seed(5)
    expected = up_to_end(*sample_completions(*inputs, CONFIG, 1.0))
    for (ids, logps), (own_ids, own_logps) in zip(expected, found, strict=True):
        assert own_ids == ids
        assert own_logps == pytest.approx(logps, abs=1e-5)
    assert len({tuple(ids) for ids, _ in found}) > 1


def test_draws_have_the_log_probabilities_that_one_pass_over_them_gives():
    model, ids, mask, prefix = model_and_inputs("t5")
    torch.manual_seed(0)
    tokens, logps = by_own_step(model, ids, mask, prefix, 0.7)
    assert_scored_alike(model, ids, mask, tokens, logps, 0.7, 1e-5)


def test_a_row_is_padded_behind_its_end_and_decoding_stops_when_all_have_ended():
    model, ids, mask, prefix = model_and_inputs("t5")
    script = iter([[5, EOS, 5, 5, 5], [EOS, 6, 6, EOS, EOS], [7, 7, EOS, 7, 7], [8] * 5, [8] * 5])

    def draw(logits):
        drawn = torch.tensor(next(script))[:, None]
        return drawn, torch.zeros(len(drawn), 1)

    options = {"max_tokens": TOKENS, "end_tokens": [EOS], "pad_token": PAD}
    with torch.no_grad(), encode_once(model):
        tokens, _ = decode(model, ids, mask, prefix, draw, **options)
    assert tokens.tolist() == [
        [5, EOS, PAD],
        [EOS, PAD, PAD],
        [5, 6, EOS],
        [5, EOS, PAD],
        [5, EOS, PAD],
    ]


def test_one_token_needs_no_second_step():
    inputs = model_and_inputs("t5")
    tokens, logps = by_own_step(*inputs, 1.0, max_tokens=1)
    assert tokens.shape == logps.shape == (len(PROMPTS), 1)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", ["t5", "flan-t5", "mt5"])
def test_a_gpu_replays_draws_that_follow_the_seed_and_are_scored_alike(family, adapter):
    model, ids, mask, prefix = model_and_inputs(family, "cuda", adapter)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_completions(model, ids, mask, prefix, CONFIG, 1.0))
    assert draws[0][0].equal(draws[1][0]) and not draws[0][0].equal(draws[2][0])
    for tokens, logps in draws:
        assert_scored_alike(model, ids, mask, tokens, logps, 1.0, 1e-4)
