"""Run by `test_distributed.py` under `torchrun`: a whole run, and one resumed from a checkpoint between two logs."""

import json
import sys
from pathlib import Path

from datasets import Dataset


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, leave_together, tiny_llama
from test_trainer import ROWS

from md_trl import MDConfig, MDTrainer


def main(output: str) -> None:
    logs = []
    for resume in (None, f"{output}/checkpoint-3"):
        args = MDConfig(
            output_dir=output,
            max_steps=7,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=4,
            save_steps=3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = Dataset.from_list(ROWS)
        trainer = MDTrainer(model=tiny_llama(), args=args, train_dataset=rows, processing_class=byte_tokenizer())
        trainer.train(resume_from_checkpoint=resume)
        # Not `loss`, which transformers averages over the steps since the resume, and not the time.
        kept = ("num_", "mean_", "type_", "cot_", "pot_")
        found = [log for log in trainer.state.log_history if "num_questions" in log]
        logs.append([{name: value for name, value in log.items() if name.startswith(kept)} for log in found])
    if trainer.accelerator.is_main_process:
        Path(output, "logs.json").write_text(json.dumps(logs))
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
