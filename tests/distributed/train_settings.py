"""Run by `test_distributed.py` under `torchrun`: train in several settings and save the losses and weights."""

import sys
from pathlib import Path

import torch
from datasets import Dataset


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import leave_together, make_student
from test_trainer import random_rows

from md_trl import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer


def main(output: str) -> None:
    rows = Dataset.from_list(random_rows(24, seed=1))
    for setting in sys.argv[2:]:
        layout, student, tuning, batch, accumulation = setting.split("-")
        config, trainer = (MDSeq2SeqConfig, MDSeq2SeqTrainer) if student == "t5" else (MDConfig, MDTrainer)
        args = config(
            output_dir=f"{output}/{setting}",
            layout=layout,
            max_steps=3,
            per_device_train_batch_size=int(batch),
            gradient_accumulation_steps=int(accumulation),
            per_device_eval_batch_size=5,
            rationales_per_path="all",
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
        model, tokenizer = make_student(student, lora=tuning == "lora")
        trainer = trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        eval_loss = trainer.evaluate(rows)["eval_loss"]
        if trainer.accelerator.is_main_process:
            losses = [log["loss"] for log in trainer.state.log_history if "num_questions" in log]
            result = {"losses": losses, "weights": trainer.model.state_dict(), "eval_loss": eval_loss}
            torch.save(result, f"{output}/{setting}.pt")
        trainer.accelerator.wait_for_everyone()
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
