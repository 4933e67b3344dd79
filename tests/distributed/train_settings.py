"""Run by `test_distributed.py` under `torchrun`: trains several settings and writes losses and weights."""

import sys
from pathlib import Path

import torch
from datasets import Dataset


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_mistral
from test_trainer import ROWS

from md_trl import MDConfig, MDTrainer


STUDENTS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "mistral": tiny_mistral}


def main(output: str) -> None:
    for setting in sys.argv[2:]:
        layout, student, batch, accumulation = setting.split("-")
        model = STUDENTS[student]()
        args = MDConfig(
            output_dir=f"{output}/{setting}",
            layout=layout,
            max_steps=5,
            per_device_train_batch_size=int(batch),
            gradient_accumulation_steps=int(accumulation),
            per_device_eval_batch_size=2,
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
        rows = Dataset.from_list(ROWS)
        trainer = MDTrainer(model=model, args=args, train_dataset=rows, processing_class=byte_tokenizer())
        trainer.train()
        eval_loss = trainer.evaluate(rows)["eval_loss"]
        if trainer.accelerator.is_main_process:
            logs = [log for log in trainer.state.log_history if "num_questions" in log]
            torch.save(
                {"logs": logs, "weights": trainer.model.state_dict(), "eval_loss": eval_loss}, f"{output}/{setting}.pt"
            )
        trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(sys.argv[1])
