"""Models with and without a LoRA adapter."""

from peft import PeftModel
from transformers import PreTrainedModel


def below_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model that an adapter lies on, or the model itself where there is none."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
