"""Long runs stay flat: memory, open files and disk after many rounds, memory after many steps.

What was measured is written to long_runs.json beside pytest's temporary folders, for the table in
docs/reliability.md (`LONG_RUNS` in reliability_page.py); 200 rounds take 10 to 40 minutes.
"""

import json
import os
import time
from pathlib import Path
from statistics import median

import pytest
from seq2seq_models import build_model, build_trainer
from toy_runs import build_run, read_size, write_beir, write_loop_config
from transformers import TrainerCallback

from agr_trl.adversarial import AdversarialRun

ROUNDS = int(os.environ.get("AGR_TRL_LONG_ROUNDS", "200"))
STEPS = int(os.environ.get("AGR_TRL_LONG_STEPS", "10000"))
MEGABYTE = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7_200),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc of Linux"),
]


def memory() -> float:
    """Return this process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def keep(tmp_path_factory, name, figures):
    """Leave the figures for docs/reliability.md."""
    file = tmp_path_factory.getbasetemp().parent / "long_runs.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | {name: figures}, indent=2))


def test_many_rounds_stay_flat(tmp_path, tmp_path_factory, monkeypatch):
    rows = []
    run_round = AdversarialRun._run_round

    def measured(self, number, folder):
        run_round(self, number, folder)
        models = [path for path in self.folder.glob("round_*/*") if path.is_dir()]
        rows.append(
            {
                "memory": memory(),
                "files": len(os.listdir("/proc/self/fd")),
                "models": sum(read_size(path) for path in models) / MEGABYTE,
                "all": read_size(self.folder) / MEGABYTE,
                "kept": self.round_metrics(number)["kept"],
                "time": time.monotonic(),
            }
        )

    monkeypatch.setattr(AdversarialRun, "_run_round", measured)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = write_loop_config(
        tmp_path / "run.yaml", write_beir(tmp_path / "beir"), rounds=ROUNDS, kept_models=2
    )
    build_run(config, tmp_path / "run").run()
    assert len(rows) == ROUNDS + 1
    early, late = rows[ROUNDS // 5 : 2 * ROUNDS // 5], rows[-ROUNDS // 5 :]
    figures = {
        f"{name}_{when}": round(median(row[name] for row in part), 2)
        for name in ("memory", "files", "models", "all")
        for when, part in (("early", early), ("late", late))
    }
    figures |= {"rounds": ROUNDS, "kept": sum(row["kept"] for row in rows)}
    figures["seconds_a_round"] = (rows[-1]["time"] - rows[0]["time"]) / ROUNDS
    keep(tmp_path_factory, "rounds", figures)
    assert figures["memory_late"] < figures["memory_early"] * 1.05
    assert figures["files_late"] == figures["files_early"]
    # Models of round 0, of the best and of the last two rounds, and of one that is at work.
    assert figures["models_late"] < figures["models_early"] * 1.1
    tables = [figures[f"all_{when}"] - figures[f"models_{when}"] for when in ("early", "late")]
    assert tables[1] - tables[0] < 0.1 * ROUNDS  # queries, metrics and logs of a round


def test_many_steps_of_reinforcement_learning_stay_flat(tmp_path, tmp_path_factory):
    rows = []

    class Memory(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % (STEPS // 100) == 0:
                rows.append(memory())

    trainer = build_trainer(
        build_model("t5"),
        tmp_path,
        max_steps=STEPS,
        logging_steps=STEPS // 100,
        max_completion_length=4,
        save_strategy="no",
    )
    trainer.add_callback(Memory())
    begin = time.monotonic()
    trainer.train()
    early, late = median(rows[20:40]), median(rows[-20:])
    figures = {"steps": STEPS, "memory_early": round(early, 1), "memory_late": round(late, 1)}
    figures["milliseconds_a_step"] = 1_000 * (time.monotonic() - begin) / STEPS
    keep(tmp_path_factory, "steps", figures)
    assert late < early * 1.03
