"""Publish a finished model on the Hugging Face Hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainingArguments

from agr_trl.errors import UserError

logger = logging.getLogger(__name__)

# A Trainer's own pickle holds the Hub token, so it never leaves this machine.
NEVER_PUSHED = ["training_args.bin", "optimizer.pt", "scheduler.pt", "checkpoint-*/**"]


def take_hub_settings(args: TrainingArguments) -> bool:
    """Return whether `push_to_hub` was asked for, and switch off the Trainer's own pushes.

    Trainer would push every checkpoint with its `training_args.bin`; the recipes push the exported
    model once, at the end. Raises `UserError` when no repository is named.
    """
    wanted = args.push_to_hub
    if wanted and not args.hub_model_id:
        raise UserError("`push_to_hub` needs `--hub_model_id user/name`")
    args.push_to_hub = False
    return wanted


def publish_folder(folder: Path, args: TrainingArguments) -> None:
    """Upload an exported model folder to `args.hub_model_id` and wait until it is there."""
    api = HfApi(token=args.hub_token)
    repository = api.create_repo(
        args.hub_model_id, private=args.hub_private_repo, exist_ok=True, repo_type="model"
    )
    api.upload_folder(
        folder_path=folder,
        repo_id=repository.repo_id,
        commit_message=f"agr_trl: {folder.name}",
        ignore_patterns=NEVER_PUSHED,
    )
    logger.info("published %s as %s", folder, repository.repo_id)
