"""Run by `test_weighted_sft.py` under `torchrun`: train on weighted rows with each normalizer."""

import sys
from pathlib import Path

import torch
from datasets import Dataset


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, leave_together, tiny_llama
from test_weighted_sft import NORMALIZERS, ROWS, STEPS

from md_trl import MDConfig, MDTrainer


def main(output: str) -> None:
    for normalizer in NORMALIZERS:
        args = MDConfig(
            output_dir=f"{output}/{normalizer}",
            weight_normalizer=normalizer,
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            per_device_eval_batch_size=3,
            optim="sgd",
            learning_rate=0.05,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = Dataset.from_list(ROWS)
        trainer = MDTrainer(tiny_llama(), args, train_dataset=rows, processing_class=byte_tokenizer())
        trainer.train()
        eval_loss = trainer.evaluate(rows)["eval_loss"]
        if trainer.accelerator.is_main_process:
            losses = [log["loss"] for log in trainer.state.log_history if "num_questions" in log]
            result = {"losses": losses, "weights": trainer.model.state_dict(), "eval_loss": eval_loss}
            torch.save(result, f"{output}/{normalizer}.pt")
        trainer.accelerator.wait_for_everyone()
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
