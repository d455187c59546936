"""What agr_trl relies on inside TRL. If this fails, read the new TRL before raising the cap."""

import inspect

import pytest
from trl import GRPOTrainer, RLOOTrainer

from agr_trl.seq2seq_trainer import Seq2SeqGRPOTrainer, Seq2SeqRLOOTrainer

SCORED = [
    "self",
    "model",
    "input_ids",
    "attention_mask",
    "logits_to_keep",
    "batch_size",
    "compute_entropy",
    "compute_aux_loss",
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
]
GENERATED = ["self", "prompt_ids", "images", "multimodal_fields"]
REWARDED = ["self", "inputs", "prompts", "completions", "completion_ids_list"]
PAIRS = [(Seq2SeqRLOOTrainer, RLOOTrainer), (Seq2SeqGRPOTrainer, GRPOTrainer)]


def names(function):
    return list(inspect.signature(function).parameters)


def test_the_seams_have_the_known_signatures():
    for parent in (RLOOTrainer, GRPOTrainer):
        assert names(parent._get_per_token_logps_and_entropies) == SCORED
        assert names(parent._tokenize_prompts) == ["self", "prompts"]
        assert names(parent._calculate_rewards) == REWARDED
    assert names(RLOOTrainer._generate_single_turn) == GENERATED
    assert names(GRPOTrainer._generate_single_turn) == [
        *GENERATED,
        "num_generations",
        "has_tool_images",
    ]


@pytest.mark.parametrize(("own", "parent"), PAIRS)
def test_the_overrides_take_what_the_parents_take(own, parent):
    assert names(own._generate_single_turn) == names(parent._generate_single_turn)
    assert names(own._tokenize_prompts) == names(parent._tokenize_prompts)
    assert names(own._calculate_rewards) == names(parent._calculate_rewards)
    scored = names(own._get_per_token_logps_and_entropies)
    assert [*scored[:8], *SCORED[8:]] == SCORED and scored[8:] == ["multimodal"]


@pytest.mark.parametrize(("own", "parent"), PAIRS)
def test_the_constructor_is_the_parents_with_one_more_option(own, parent):
    known = names(parent.__init__)[:12]
    assert names(own.__init__)[:12] == known and known[-1] == "peft_config"
    assert names(own.__init__)[12:] == ["max_prompt_tokens", "other"]
    assert set(names(parent.__init__)[12:]) <= {"tools", "rollout_func", "environment_factory"}


@pytest.mark.parametrize("parent", [RLOOTrainer, GRPOTrainer])
def test_what_the_mixin_works_around_is_still_there(parent):
    source = inspect.getsource(parent.__init__)
    assert 'model.add_adapter("ref"' in source  # deleted again
    assert "add_fused_lm_head(" in source  # its forward is taken off again
    assert "self.beta = args.beta" in source and "if self.beta == 0.0" in source  # hidden, then set
    scoring = inspect.getsource(parent._generate_and_score_completions)
    assert '"ref" if "ref" in model.peft_config else None' in scoring  # the anchor


def test_the_first_scores_that_rloo_asks_for_are_the_sampled_tokens_own():
    # They are answered with what sampling has met: Seq2SeqRLOOTrainer.
    source = inspect.getsource(RLOOTrainer._generate_and_score_completions)
    sampling = source.index("self._generate(prompts)")
    first = source.index("self._get_per_token_logps_and_entropies(")
    asked = "old_per_token_logps, _, _ = self._get_per_token_logps_and_entropies("
    assert sampling < first == source.index(asked) + asked.index("self._get")
