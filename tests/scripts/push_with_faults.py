"""Push a run to a Hub that fails in every way that users meet; write what came of it as JSON.

Arguments: the run folder, a file for the answers.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hub_server import TOKEN, Hub, hub_server


def main(run: Path, output: Path) -> None:
    answers = {}
    with hub_server() as hub:
        # Before huggingface_hub is imported, which reads them once.
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": tempfile.mkdtemp(dir=output.parent)}
        from transformers import TrainingArguments

        from agr_trl.errors import UserError
        from agr_trl.hub import publish_folder, publish_run

        time.sleep = lambda seconds: None  # waits between attempts
        faults = {
            "wrong_token": ({}, "hf_wrong"),
            "read_only": ({"read_only": True}, TOKEN),
            "refused_name": ({"refused_name": "user/toy-generator"}, TOKEN),
            "always_lost": ({"drop_uploads": -1}, TOKEN),
            "commit_always_lost": ({"drop_commits": -1}, TOKEN),
            "lost_once": ({"drop_uploads": 1, "drop_commits": 1}, TOKEN),
            "again": ({}, TOKEN),
            "private_but_public": ({}, TOKEN),
        }
        for name, (fault, token) in faults.items():
            if name not in ("again", "private_but_public"):
                vars(hub).update(vars(Hub(url=hub.url)))
            vars(hub).update(fault)
            private = name == "private_but_public"
            try:
                publish_run(run, "user/toy", private=private, token=token)
                error = None
            except UserError as caught:
                error = str(caught)
            commits = {repo: len(r.commits) for (_, repo), r in hub.repositories.items()}
            answers[name] = {"error": error, "commits": commits}
        publish_run(run, "user/toy", merged_generator=True, token=TOKEN)
        merged = hub.model("user/toy-generator")
        answers["merged"] = {ref: sorted(merged.files(ref)) for ref in ("main", *merged.tags)}
        for name, folder, token in (
            ("stage_retriever", run / "round_01" / "retriever", TOKEN),
            ("stage_generator", run / "round_01" / "generator", TOKEN),
            ("stage_wrong_token", run / "round_00" / "generator", "hf_wrong"),
        ):
            args = TrainingArguments(report_to="none", hub_model_id=f"user/{name}", use_cpu=True)
            try:
                publish_folder(folder, args, token)
                files = hub.model(f"user/{name}").files()
                answers[name] = {"files": sorted(files), "card": files["README.md"].decode()}
            except UserError as caught:
                answers[name] = {"error": str(caught)}
        answers["secret"] = [
            name for name, content in hub.all_contents() if str(run.parent).encode() in content
        ]
    output.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
