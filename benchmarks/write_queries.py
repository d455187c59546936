"""Write four queries for each product of a catalogue with a T5 of t5-small's shape."""

from environments import PROJECT
from measure import PROMPT_TOKENS, arguments, read, tell, timed

UNIT = "queries"
OURS = "agr_trl"
CONTESTANTS = {OURS: PROJECT, "model.generate in batches": PROJECT}
GOALS = dict.fromkeys(list(CONTESTANTS)[1:], 2.0)
SIZES = {"products": 256, "repeats": 1}
QUICK = {"products": 32, "repeats": 1}
EACH = 4
QUERY_TOKENS = 16
BATCH = 64


def writer_of(name: str, folder: str):
    """Return a function from texts to their queries."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if name == OURS:
        from agr_trl.config import SamplingArguments
        from agr_trl.generator import sample_queries

        settings = SamplingArguments(
            queries_per_product=EACH, max_query_tokens=QUERY_TOKENS, sampling_batch_size=BATCH
        )
        return lambda texts: sample_queries(model, tokenizer, texts, settings, PROMPT_TOKENS)

    @torch.no_grad()
    def write(texts):
        written = []
        for begin in range(0, len(texts), BATCH):
            batch = tokenizer(
                texts[begin : begin + BATCH],
                padding=True,
                truncation=True,
                max_length=PROMPT_TOKENS,
                return_tensors="pt",
            )
            tokens = model.generate(
                **batch,
                do_sample=True,
                top_k=0,
                temperature=0.9,
                num_return_sequences=EACH,
                max_new_tokens=QUERY_TOKENS,
            )
            written += tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return written

    return write


if __name__ == "__main__":
    name, inputs, sizes = arguments()
    texts = read(inputs, "catalogue")["texts"][: sizes["products"]]
    write = writer_of(name, str(inputs / "generator"))
    tell(len(texts) * EACH, timed(lambda: write(texts), sizes["repeats"]))
