"""One policy-gradient step: sample G queries for each product, score them with R, update a LoRA.

T5-small's shape, eight products of 128 tokens and eight queries of 16 for each, the batch of the
recipes, MiniLM-L6 as R, reward L_R alone. Every contestant does the whole step: sampling, R's loss,
the KL anchor, one pass of gradients.
"""

import math
import tempfile
from contextlib import contextmanager
from pathlib import Path

from environments import PROJECT
from measure import PROMPT_TOKENS, arguments, read, tell, timed

UNIT = "queries"
GROUP = 8
QUERY_TOKENS = 16
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}
OURS = "agr_trl"
BFLOAT16 = "agr_trl, bfloat16 autocast"
CONTESTANTS = {
    OURS: PROJECT,
    BFLOAT16: PROJECT,
    "agr_trl, each query's product encoded anew": PROJECT,
    "TRL 0.11.4 PPOTrainer": "trl_0_11",
    "plain loop, pairs scored one by one": PROJECT,
}
GOALS = dict.fromkeys(list(CONTESTANTS)[2:], 3.0)
BFLOAT16_GOALS = dict(zip(list(CONTESTANTS)[3:], (5.0, 6.0), strict=True))
SIZES = {"products": 8, "repeats": 2}
QUICK = {"products": 8, "repeats": 1}


def agr_trl(
    inputs: Path,
    products: int,
    repeats: int,
    group: int = GROUP,
    prompt_tokens: int = PROMPT_TOKENS,
    shared: bool = True,
    bfloat16: bool = False,
) -> None:
    """Train with the project's trainer and reward; a step ends when its optimizer has stepped."""
    import time

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TrainerCallback
    from trl import RLOOConfig

    from agr_trl import Retriever, Seq2SeqRLOOTrainer, sampling, seq2seq_trainer
    from agr_trl.config import RewardArguments
    from agr_trl.rewards import RetrieverLossReward

    class Clock(TrainerCallback):
        """Seconds of each step, and the operations of the first, which does not count."""

        def __init__(self):
            self.seconds = []
            self.operations = 0
            self.threads = torch.get_num_threads()
            packed = {torch.ops.mkldnn._linear_pointwise: linear_operations}
            self.counter = FlopCounterMode(display=False, custom_mapping=packed)

        def on_step_begin(self, args, state, control, **kwargs):
            if not state.global_step:
                torch.set_num_threads(1)  # the counter sees nothing of what other threads do
                self.counter.__enter__()
            self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            if not self.operations:
                self.counter.__exit__(None, None, None)
                torch.set_num_threads(self.threads)
                self.operations = self.counter.get_total_flops()
            else:
                self.seconds.append(time.perf_counter() - self.began)

    @contextmanager
    def encode_every_row(encoder):
        yield

    if not shared:
        seq2seq_trainer.encode_once = sampling.encode_once = encode_every_row
        Seq2SeqRLOOTrainer._is_encoded_for_loss = False
    texts = read(inputs, "catalogue")["long_texts"]
    times = math.ceil(prompt_tokens / PROMPT_TOKENS)
    texts = [" ".join([text] * times) for text in texts[: products * (repeats + 1)]]
    retriever = Retriever.from_pretrained(str(inputs / "retriever"), prompt_tokens + 32)
    retriever.bfloat16 = bfloat16
    reward = RetrieverLossReward(retriever, RewardArguments(gate_loss_reward=False))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = RLOOConfig(
            output_dir=folder,
            per_device_train_batch_size=products * group,
            num_generations=group,
            max_completion_length=QUERY_TOKENS,
            max_steps=repeats + 1,
            learning_rate=1e-3,
            beta=0.05,
            activation_checkpointing=False,
            bf16=bfloat16,
            use_cpu=bfloat16 and not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        torch.manual_seed(0)
        Seq2SeqRLOOTrainer(
            model=AutoModelForSeq2SeqLM.from_pretrained(inputs / "generator"),
            reward_funcs=[reward],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": texts, "document": texts}),
            processing_class=AutoTokenizer.from_pretrained(inputs / "generator"),
            callbacks=[clock],
            peft_config=LoraConfig(**LORA),
            max_prompt_tokens=prompt_tokens,
        ).train()
    tell(products * group, clock.seconds, operations=clock.operations)


def trl_ppo(inputs: Path, products: int, repeats: int) -> None:
    """Train with TRL 0.11.4's PPOTrainer, one PPO epoch, the adapter switched off as reference."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
    from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    file = str(inputs / "generator" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, **special)
    retriever = AutoModelForSequenceClassification.from_pretrained(inputs / "retriever").eval()
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(
        str(inputs / "generator"), peft_config=LoraConfig(**LORA)
    )
    size = products * GROUP
    config = PPOConfig(batch_size=size, mini_batch_size=size, ppo_epochs=1, learning_rate=1e-3)
    trainer = PPOTrainer(config, model, None, tokenizer)
    texts = iter(read(inputs, "catalogue")["long_texts"])

    def step():
        documents = [text for text in (next(texts) for _ in range(products)) for _ in range(GROUP)]
        prompts = [tokenizer(text, return_tensors="pt").input_ids[0] for text in documents]
        answers = trainer.generate(
            prompts,
            batch_size=size,
            return_prompt=False,
            max_new_tokens=QUERY_TOKENS,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        queries = tokenizer.batch_decode(answers, skip_special_tokens=True)
        pairs = tokenizer(queries, documents, padding=True, truncation=True, max_length=160)
        names = ("input_ids", "attention_mask", "token_type_ids")
        batch = {name: torch.tensor(pairs[name]) for name in names}
        with torch.no_grad():
            logits = retriever(**batch).logits[:, 0]
        loss = torch.nn.functional.softplus(-logits).clamp(max=4) / 4
        trainer.step(prompts, answers, list(loss))

    tell(size, timed(step, repeats))


def plain_loop(inputs: Path, products: int, repeats: int) -> None:
    """Train as a first notebook would: batches of 8 rows padded to 128, pairs scored one by one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    tokenizer = AutoTokenizer.from_pretrained(inputs / "generator")
    scorer_tokenizer = AutoTokenizer.from_pretrained(inputs / "retriever")
    retriever = AutoModelForSequenceClassification.from_pretrained(inputs / "retriever").eval()
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_pretrained(inputs / "generator")
    model = get_peft_model(model, LoraConfig(**LORA))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    texts = iter(read(inputs, "catalogue")["long_texts"])

    def log_probabilities(batch, tokens):
        logits = model(**batch, labels=tokens).logits
        return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0].sum(-1)

    def batch_step(documents):
        limits = {"padding": "max_length", "truncation": True, "max_length": PROMPT_TOKENS}
        batch = tokenizer(documents, return_tensors="pt", **limits)
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            drawn = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=QUERY_TOKENS)
            rewards = []
            queries = tokenizer.batch_decode(drawn, skip_special_tokens=True)
            for query, document in zip(queries, documents, strict=True):
                limits = {"padding": "max_length", "truncation": True, "max_length": 160}
                pair = scorer_tokenizer(query, document, return_tensors="pt", **limits)
                loss = torch.nn.functional.softplus(-retriever(**pair).logits[0, 0])
                rewards.append(loss.clamp(max=4) / 4)
            tokens = drawn[:, 1:].contiguous()
            with model.disable_adapter():
                anchor = log_probabilities(batch, tokens)
        own = log_probabilities(batch, tokens)
        reward = torch.stack(rewards) - 0.05 * (own.detach() - anchor)
        (-(reward - reward.mean()) * own).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def step():
        for _ in range(products):
            batch_step([next(texts)] * GROUP)

    tell(products * GROUP, timed(step, repeats))


def linear_operations(states: tuple, weight: tuple, *_, **__) -> int:
    """Return the operations of a linear layer, for shapes (..., in) and (out, in)."""
    return 2 * math.prod(states) * weight[0]


def least_operations(
    products: int,
    group: int = GROUP,
    generator: tuple[int, int, int] = (512, 2_048, 6),
    retriever: tuple[int, int, int] = (384, 1_536, 6),
) -> float:
    """Return the floating-point operations that a step needs at the least.

    The models, T5 and BERT, are given as width, inner width and number of layers.
    Weights count 2 operations a token each (multiply, add); the softmax's products of keys and
    queries are left out, a few percent. A pass backward through frozen weights costs as much as
    one forward, since only what flows to the adapters is needed. Each product is encoded for
    sampling and the loss together, backward, and for the anchor; each query's tokens go through the
    decoder for sampling, for the loss (forward and backward) and for the anchor, through the head
    as often but for the loss's forward pass, whose part was met in sampling, and once through BERT
    with their product, of whose last layer all but keys and values is for the first token alone.
    """
    (width, inner, layers), vocabulary = generator, 32_128
    encoder_weights = layers * (4 * width**2 + 2 * width * inner)
    decoder_weights = layers * (6 * width**2 + 2 * width * inner)
    keys_and_values = layers * 2 * width**2  # of the encoded product, once a product
    queries = products * group
    encoder = 3 * 2 * products * PROMPT_TOKENS * (encoder_weights + keys_and_values)
    decoder = 2 * queries * QUERY_TOKENS * (4 * decoder_weights + 3 * width * vocabulary)
    width, inner, layers = retriever
    keys_and_values, rest = 2 * width**2, 2 * width**2 + 2 * width * inner  # of a layer of BERT
    layer = keys_and_values + rest
    pair = (PROMPT_TOKENS + QUERY_TOKENS + 3) * ((layers - 1) * layer + keys_and_values) + rest
    scorer = 2 * queries * pair
    return float(encoder + decoder + scorer)


if __name__ == "__main__":
    name, inputs, sizes = arguments()
    ours, bfloat16, unshared, trl, plain = CONTESTANTS
    if name in (ours, bfloat16, unshared):
        agr_trl(inputs, **sizes, shared=name != unshared, bfloat16=name == bfloat16)
    elif name == trl:
        trl_ppo(inputs, **sizes)
    else:
        plain_loop(inputs, **sizes)
