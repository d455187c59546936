"""One RL step on a GPU, bfloat16: t5-base's shape writes 16 queries a product, bert-large's judges.

    python benchmarks/gpu_step.py --output benchmarks/gpu_results.json

Random weights, prompts of 128 tokens, queries of 16, reward L_R alone; as the trainer is, and
without each of what saves work on a GPU. Told are queries a second, where a step's time goes, how
busy the GPU is while tokens are drawn, and the share of the GPU's own matrix rate.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import rl_step
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.profiler import ProfilerActivity, profile
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from trl import RLOOConfig

from agr_trl import Retriever, Seq2SeqRLOOTrainer, sampling, seq2seq_trainer
from agr_trl.config import RewardArguments
from agr_trl.files import write_json
from agr_trl.rewards import RetrieverLossReward
from agr_trl.runtime import commit, hardware, run_recipe

PRODUCTS, GROUP, PROMPT_TOKENS, QUERY_TOKENS = 16, 16, 128, 16
STEPS = 8  # after two that do not count
T5_BASE = T5Config(
    d_model=768, d_kv=64, d_ff=3_072, num_layers=12, num_heads=12, vocab_size=32_128,
    dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
)  # fmt: skip
BERT_LARGE = BertConfig(
    vocab_size=32_128, hidden_size=1_024, num_hidden_layers=24, num_attention_heads=16,
    intermediate_size=4_096, num_labels=1, pad_token_id=0,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    speed = matrix_speed()
    result = {
        "machine": hardware(),
        "commit": commit(),
        "sizes": {
            "products": PRODUCTS,
            "group": GROUP,
            "prompt_tokens": PROMPT_TOKENS,
            "query_tokens": QUERY_TOKENS,
        },
        "matrix_tflops": speed / 1e12,
        "agr_trl": measured(speed),
    }
    with replaced(sampling, "_RECORDED", ()):
        result["decoding by generate"] = measured(speed)
        with (
            replaced(sampling, "encode_once", nothing),
            replaced(seq2seq_trainer, "encode_once", nothing),
            replaced(seq2seq_trainer._Seq2SeqMixin, "_is_encoded_for_loss", False),
        ):
            result["and each query's product encoded anew"] = measured(speed)
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)


class Watch(TrainerCallback):
    """Seconds of each step and of its parts; the GPU is waited for at every boundary."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, part: str, work: Callable) -> Callable:
        """Return `work`, timed."""

        def wrapped(*args, **options):
            began = self._now()
            result = work(*args, **options)
            self.seconds.setdefault(part, []).append(self._now() - began)
            return result

        return wrapped

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._began = self._now()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds.setdefault("step", []).append(self._now() - self._began)

    def _now(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()


def measured(speed: float) -> dict[str, float]:
    """Return what a trainer's steps cost, and the share of the rate `speed` (operations a s)."""
    torch.cuda.reset_peak_memory_stats()
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(folder, watch)
        trainer.train()
        medians = {part: median(seconds[2:]) for part, seconds in watch.seconds.items()}
        busy = busy_share(trainer)
    step = medians["step"]
    return {
        "queries_a_second": PRODUCTS * GROUP / step,
        "step_seconds": step,
        "sampling_share": medians["sampling"] / step,
        "reward_share": medians["reward"] / step,
        "gpu_busy_while_sampling": busy,
        "share_of_matrix_rate": least_operations() / step / speed,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def build_trainer(folder: str, watch: Watch) -> Seq2SeqRLOOTrainer:
    """Return the trainer, its parts under the watch."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    with torch.device("cuda"):  # where drawing 550 million weights takes no time
        model = BertForSequenceClassification(BERT_LARGE)
        generator = T5ForConditionalGeneration(T5_BASE)
    retriever = Retriever(model, tokenizer, max_pair_tokens=160, bfloat16=True).to_device()
    reward = RetrieverLossReward(retriever, RewardArguments(gate_loss_reward=False))
    numbers = np.random.default_rng(0).integers(10, 32_000, (64 * PRODUCTS, PROMPT_TOKENS - 1))
    texts = [" ".join(f"w{number}" for number in row) for row in numbers]
    args = RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=PRODUCTS * GROUP,
        num_generations=GROUP,
        max_completion_length=QUERY_TOKENS,
        max_steps=STEPS + 2,
        learning_rate=1e-4,
        beta=0.05,
        bf16=True,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")

    def retriever_loss(completions, document, **columns):
        return timed_reward(completions, document, **columns)

    timed_reward = watch.timed("reward", reward)
    trainer = Seq2SeqRLOOTrainer(
        model=generator,
        reward_funcs=[retriever_loss],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": texts, "document": texts}),
        processing_class=tokenizer,
        callbacks=[watch],
        peft_config=lora,
        max_prompt_tokens=PROMPT_TOKENS,
    )
    trainer._sample = watch.timed("sampling", trainer._sample)
    return trainer


def busy_share(trainer: Seq2SeqRLOOTrainer) -> float:
    """Return the share of the time of drawing tokens in which the GPU computes."""
    prompts = [trainer.train_dataset[row // GROUP]["prompt"] for row in range(PRODUCTS * GROUP)]
    ids = trainer._tokenize_prompts(prompts)[0]
    trainer._sample(ids)
    torch.cuda.synchronize()
    began = time.perf_counter()
    trainer._sample(ids)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        trainer._sample(ids)
        torch.cuda.synchronize()
    kernels = sum(event.self_device_time_total for event in profiler.key_averages())
    return kernels / 1e6 / seconds


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 32,000 words w0, w1, ..., each one token, with BERT's pairs."""
    special = ["<pad>", "</s>", "<unk>", "<cls>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{n}" for n in range(32_000))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>",
        pair="<cls> $A </s> $B:1 </s>:1",
        special_tokens=[("</s>", 1), ("<cls>", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def least_operations() -> float:
    """Return the least floating-point operations of a step."""
    t5 = (T5_BASE.d_model, T5_BASE.d_ff, T5_BASE.num_layers)
    bert = (BERT_LARGE.hidden_size, BERT_LARGE.intermediate_size, BERT_LARGE.num_hidden_layers)
    return rl_step.least_operations(PRODUCTS, GROUP, t5, bert)


def matrix_speed(size: int = 8_192, repeats: int = 20) -> float:
    """Return the operations a second of a large bfloat16 matrix product."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    left @ right
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began)


@contextmanager
def replaced(module, name: str, value) -> Iterator[None]:
    """Give a module another value of one name inside this context."""
    own = vars(module)[name]
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


@contextmanager
def nothing(model) -> Iterator[None]:
    """Stand in for `encode_once`."""
    yield


if __name__ == "__main__":
    run_recipe(main)
