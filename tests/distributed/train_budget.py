"""Run by `test_validation.py` under `torchrun`: stop at a number of target tokens, with greedy accuracies."""

import json
import sys
from pathlib import Path

from datasets import Dataset


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, leave_together, tiny_llama
from test_validation import GREEDY, sums

from md_trl import MDConfig, MDTrainer
from md_trl.validation import GreedyAccuracy, validation_questions


def main(output: str, batch_size: str, max_target_tokens: str) -> None:
    rows = Dataset.from_list(sums(7))
    args = MDConfig(
        output_dir=output,
        max_target_tokens=int(max_target_tokens),
        per_device_train_batch_size=int(batch_size),
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    accuracy = GreedyAccuracy(validation_questions(rows), params=GREEDY)
    model, tokenizer = tiny_llama(), byte_tokenizer()
    trainer = MDTrainer(model, args, None, rows, rows, tokenizer, callbacks=[accuracy])
    trainer.train()
    kept = ("step", "num_target_tokens", "eval_cot_accuracy", "eval_pot_accuracy", "eval_joint_accuracy")
    logs = [{name: log[name] for name in kept if name in log} for log in trainer.state.log_history]
    Path(output, f"logs-{batch_size}-{args.process_index}.json").write_text(json.dumps(logs))
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
