import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from toy_shop import (
    DOCUMENTS,
    PROMPTS,
    TITLES,
    WordOverlap,
    build_generator,
    build_retriever,
    weights_of,
)
from trl import RLOOConfig

from agr_trl.acceptance import AcceptanceFilter
from agr_trl.config import RewardArguments
from agr_trl.errors import UserError
from agr_trl.rewards import (
    AcceptanceReward,
    RelevanceReward,
    RetrieverLossReward,
    excess_loss,
)
from agr_trl.search import BM25Index
from agr_trl.seq2seq_trainer import Seq2SeqRLOOTrainer
from agr_trl.stages import attack_rewards

QUERIES = ["red chair", "", "desk lamp", "?"]
LOGITS = np.array([0.0, -4.0, -10.0, 10.0, -1000.0], dtype=np.float32)


def reward(loss_reward="bce", relevance=None, **settings):
    settings = {"gate_loss_reward": relevance is not None} | settings
    arguments = RewardArguments(loss_reward=loss_reward, **settings)
    gate = AcceptanceReward(relevance, AcceptanceFilter(arguments)) if relevance else None
    return RetrieverLossReward(build_retriever(), arguments, gate)


def test_capped_loss_by_hand():
    # ln 2 / 4 = .173; softplus(4) = 4.018 is above the cap; softplus(-10) = .0000454
    expected = [math.log(2) / 4, 1, 1, 4.54e-5 / 4, 1]
    assert reward().shape(LOGITS).tolist() == pytest.approx(expected, abs=1e-6)
    assert reward(loss_cap_nats=1).shape(LOGITS)[0] == pytest.approx(0.693147, abs=1e-6)


def test_the_attacked_retriever_scores_in_the_generators_precision():
    relevance, acceptance = WordOverlap(), AcceptanceFilter(RewardArguments(), BM25Index(DOCUMENTS))
    for bfloat16 in (True, False):
        retriever = build_retriever()
        rewards = attack_rewards(
            [retriever], relevance, acceptance, None, DOCUMENTS, bfloat16=bfloat16
        )
        assert rewards[0].retrievers == [retriever] and retriever.bfloat16 is bfloat16


def test_all_attacked_retrievers_are_in_the_reward():
    relevance, acceptance = WordOverlap(), AcceptanceFilter(RewardArguments(), BM25Index(DOCUMENTS))
    both = [build_retriever(0), build_retriever(1)]
    loss, _, _ = attack_rewards(both, relevance, acceptance, None, DOCUMENTS, bfloat16=True)
    assert loss.retrievers == both
    assert all(one.bfloat16 for one in both)
    assert not any(p.requires_grad for one in both for p in one.model.parameters())


def test_uncertainty_by_hand():
    # 2 * min(p, 1 - p) with p = .5, .017986, .0000454, .9999546, 0
    expected = [1, 0.035972, 9.08e-5, 9.08e-5, 0]
    assert reward("uncertainty").shape(LOGITS).tolist() == pytest.approx(expected, abs=1e-6)


def test_margin_band_by_hand():
    p = np.array([0.0001, 0.15, 0.3, 0.5, 0.8, 0.9, 0.9999])
    # Below .3: p / .3; above .8: (1 - p) / .2
    expected = [0.000333, 0.5, 1, 1, 1, 0.5, 0.0005]
    got = reward("margin_band").shape(np.log(p / (1 - p)))
    assert got.tolist() == pytest.approx(expected, abs=1e-5)


class FixedLogits:
    """A retriever, or a teacher, that gives each (query, document) a known log-odds."""

    def __init__(self, logits):
        self.logits = logits

    def freeze(self):
        return self

    def score(self, queries, documents):
        pairs = zip(queries, documents, strict=True)
        return np.array([self.logits[pair] for pair in pairs])

    def probability(self, queries, documents):
        return 1 / (1 + np.exp(-self.score(queries, documents)))


def test_excess_loss_by_hand():
    # KL(.5 || .2) = .5 ln(.5 / .2) + .5 ln(.5 / .8) = .223144; KL(.9 || .5) = .9 ln 1.8 + .1 ln .2
    probability, label = np.array([0.2, 0.5, 0.7, 0.5]), np.array([0.5, 0.9, 0.7, 1])
    got = excess_loss(probability, label)
    assert got.tolist() == pytest.approx([0.223144, 0.368064, 0, math.log(2)], abs=1e-6)


def test_disagreement_is_the_loss_on_the_pairs_that_the_query_would_give():
    catalogue = ["red chair", "blue chair", "desk lamp"]
    log_odds = {name: math.log(p / (1 - p)) for name, p in {"low": 0.2, "even": 0.5}.items()}
    own, other, lamp = ("chair", "red chair"), ("chair", "blue chair"), ("lamp", "desk lamp")
    retriever = FixedLogits({own: log_odds["low"], other: log_odds["even"], lamp: log_odds["low"]})
    labels = FixedLogits({own: log_odds["even"], other: log_odds["even"], lamp: log_odds["low"]})
    queries, documents, products = ["chair", "lamp", ""], [own[1], lamp[1], lamp[1]], [0, 2, 2]
    labels.logits["", lamp[1]] = retriever.logits["", lamp[1]] = 0.0

    def build(negatives, cap):
        settings = RewardArguments(
            loss_reward="disagreement", loss_reward_negatives=negatives, loss_cap_nats=cap,
            gate_loss_reward=False,
        )  # fmt: skip
        index = BM25Index(catalogue)
        return RetrieverLossReward(retriever, settings, None, labels, index, catalogue)

    # The product alone: .223144 of 1 nat at most; the lamp's label is what R says already.
    got = build(0, 1.0)(queries, documents, product_index=products)
    assert got == pytest.approx([0.223144, 0, 0], abs=1e-5)
    # With the blue chair, on which they agree, half of it; the lamp has no other BM25 product.
    got = build(2, 1.0)(queries, documents, product_index=products)
    assert got == pytest.approx([0.111572, 0, 0], abs=1e-5)
    assert build(0, 0.1)(queries, documents, product_index=products)[0] == 1


def test_a_query_brings_as_many_neighbours_as_asked_and_never_its_own_product():
    catalogue = ["chair red", "chair blue", "chair green", "chair grey", "desk lamp"]
    settings = RewardArguments(
        loss_reward="disagreement", loss_reward_negatives=2, gate_loss_reward=False
    )
    # BM25 ties: the chairs come in the order of the catalogue, so the own one, third, is passed by.
    neighbours = RetrieverLossReward(
        build_retriever(), settings, None, FixedLogits({}), BM25Index(catalogue), catalogue
    )._neighbours
    rows, texts = neighbours(["chair", "lamp", "chair"], [0, 0, 2])
    assert rows.tolist() == [0, 0, 1, 2, 2]
    assert texts == ["chair blue", "chair green", "desk lamp", "chair red", "chair blue"]


def test_several_retrievers_are_attacked_together():
    pair, odds = ("chair", "red chair"), math.log(0.2 / 0.8)
    first, second = FixedLogits({pair: 0.0}), FixedLogits({pair: odds})
    settings = RewardArguments(loss_cap_nats=2, gate_loss_reward=False)
    both = RetrieverLossReward(first, settings, others=[second])
    # (ln 2 + ln 5) / 2, of 2 nats at most
    assert both(*([text] for text in pair)) == pytest.approx([math.log(10) / 4], abs=1e-6)
    settings = RewardArguments(
        loss_reward="disagreement", loss_cap_nats=0.2, gate_loss_reward=False
    )
    labels = FixedLogits({pair: 0.0})
    both = RetrieverLossReward(first, settings, teacher=labels, others=[second])
    # Nothing of the first; KL(.5 || .2) of the second is above the cap.
    assert both(*([text] for text in pair)) == pytest.approx([0.5])


def test_disagreement_needs_labels_and_negatives_need_bm25():
    with pytest.raises(UserError, match="needs soft labels"):
        reward("disagreement")
    with pytest.raises(UserError, match="needs `loss_reward: disagreement`"):
        reward(loss_reward_negatives=1)
    settings = RewardArguments(
        loss_reward="disagreement", loss_reward_negatives=1, gate_loss_reward=False
    )
    with pytest.raises(UserError, match="needs BM25"):
        RetrieverLossReward(build_retriever(), settings, None, FixedLogits({}))


@pytest.mark.parametrize("loss_reward", ["bce", "uncertainty", "margin_band"])
def test_rewards_lie_in_0_and_1_and_blank_queries_get_0(loss_reward):
    rewards = reward(loss_reward)(QUERIES, DOCUMENTS[:4], extra_column=[1] * 4)
    assert rewards[1] == rewards[3] == 0
    assert all(0 < value <= 1 for value in (rewards[0], rewards[2]))
    assert all(isinstance(value, float) for value in rewards)


def test_the_gate_asks_whether_a_query_would_be_accepted():
    # S of "red chair" is 1 for the red chair, .5 for the other, 0 for a table.
    products = [0, 1, 4, 0]
    all_titles = [title for title, _ in TITLES.values()]
    columns = {
        "document": [DOCUMENTS[product] for product in products],
        "title": [all_titles[product] for product in products],
        "product_index": products,
    }
    rewards = reward(relevance=WordOverlap(), min_relevance=0.5)(["red chair"] * 4, **columns)
    assert rewards[0] > 0 and rewards[1] > 0
    assert rewards[2] == 0  # not relevant
    assert rewards[3] == 0  # the first one again
    ungated = reward(relevance=WordOverlap(), gate_loss_reward=False)(["red chair"] * 4, **columns)
    assert ungated[2] > 0 and ungated[3] == ungated[0]
    with pytest.raises(UserError, match="`gate_loss_reward` needs rules"):
        reward(gate_loss_reward=True)


def test_the_retriever_is_never_changed():
    retriever = build_retriever()
    retriever.model.train()
    before = weights_of(retriever.model)
    scored = RetrieverLossReward(retriever, RewardArguments(gate_loss_reward=False))
    for _ in range(2):
        scored(QUERIES, DOCUMENTS[:4])
    assert not retriever.model.training
    assert all(not p.requires_grad and p.grad is None for p in retriever.model.parameters())
    after = weights_of(retriever.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_relevance_is_s_and_logs_the_queries():
    logged = {}
    relevance = RelevanceReward(WordOverlap())
    documents = [DOCUMENTS[0], DOCUMENTS[0], DOCUMENTS[2], DOCUMENTS[0]]
    assert relevance(QUERIES, documents, log_metric=logged.__setitem__) == [1, 0, 1, 0]
    # "desk lamp" is an unbroken run of its document; "red chair" is not, of "red wooden chair".
    assert logged["queries/copy_rate"] == 0.25
    assert logged["queries/query_words"] == 1
    assert len(logged) == 5
    assert relevance(QUERIES, documents) == [1, 0, 1, 0]


def test_acceptance_is_0_or_1():
    settings = RewardArguments(min_relevance=0.6, round_trip_top_k=1)
    acceptance = AcceptanceFilter(settings, BM25Index(DOCUMENTS))
    titles = [title for title, _ in TITLES.values()]
    products = [0, 1, 0, 0]
    rewards = AcceptanceReward(WordOverlap(), acceptance)(
        ["red chair", "red chair", "", "red chair"],
        [DOCUMENTS[i] for i in products],
        title=[titles[i] for i in products],
        product_index=products,
    )
    assert rewards == [1, 0, 0, 0]  # accepted, low relevance, blank, a duplicate


def test_acceptance_asks_how_relevant_each_word_is_to_the_document():
    settings = RewardArguments(min_relevance=0.4, min_word_relevance=0.5)
    rewards = AcceptanceReward(WordOverlap(), AcceptanceFilter(settings, scorer=WordOverlap()))
    columns = {"document": DOCUMENTS[:1] * 2, "title": ["red wooden chair"] * 2}
    # Half of "red sofa" is in the document, but not its second word.
    assert rewards(["red chair", "red sofa"], **columns, product_index=[0, 0]) == [1, 0]


def test_gate_and_acceptance_judge_a_batch_once(monkeypatch):
    accepted = AcceptanceReward(WordOverlap(), AcceptanceFilter(RewardArguments()))
    loss = RetrieverLossReward(build_retriever(), RewardArguments(), accepted)
    judged = []
    rules = AcceptanceFilter.reasons
    monkeypatch.setattr(
        AcceptanceFilter, "reasons", lambda *args: judged.append(args[1]) or rules(*args)
    )
    columns = {"document": DOCUMENTS[:1], "title": ["red wooden chair"], "product_index": [0]}
    loss(["red chair"], **columns)
    assert accepted(["red chair"], **columns) == [1]
    assert judged == [["red chair"]]
    assert accepted(["lamp"], **columns) == [0]  # others are judged anew
    assert judged == [["red chair"], ["lamp"]]


def test_trl_trains_with_these_rewards(tmp_path):
    settings = RewardArguments(min_relevance=0.5)
    retriever, relevance = build_retriever(), WordOverlap()
    accepted = AcceptanceReward(relevance, AcceptanceFilter(settings))
    before = weights_of(retriever.model)
    model, tokenizer = build_generator()
    prompts = Dataset.from_dict(
        {
            "prompt": PROMPTS,
            "document": DOCUMENTS,
            "title": [title for title, _ in TITLES.values()],
            "product_index": list(range(len(DOCUMENTS))),
        }
    )
    trainer = Seq2SeqRLOOTrainer(
        model=model,
        reward_funcs=[
            RetrieverLossReward(retriever, settings, accepted),
            RelevanceReward(relevance),
            accepted,
        ],
        args=RLOOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            max_steps=2,
            num_generations=2,
            per_device_train_batch_size=4,
            max_completion_length=5,
            reward_weights=[1.0, 1.0, 0.0],
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == 2
    for log in logs:
        means = [
            log[f"rewards/{name}/mean"] for name in ("retriever_loss", "relevance", "accepted")
        ]
        assert all(0 <= mean <= 1 for mean in means)
        assert log["reward"] == pytest.approx(means[0] + means[1], abs=1e-5)  # the third weighs 0
        assert "queries/distinct_1" in log
    after = weights_of(retriever.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
