"""Run by `test_distributed.py`: train 10 steps; get killed after 5; resume for the other 5. Each is a process."""

import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, t5_tokenizer, tiny_gpt2, tiny_t5
from test_trainer import ROWS

from md_trl import MDConfig, MDSeq2SeqConfig, MDSeq2SeqTrainer, MDTrainer
from md_trl.trainer.logged_totals import COUNTERS


STUDENTS = ("gpt2", "t5", "t5_lora")


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:  # after the checkpoint of step 5 is on disk
            os.kill(os.getpid(), signal.SIGKILL)


def train(student: str, mode: str, output: str) -> None:
    if student == "gpt2":
        model, tokenizer, config_class, trainer_class = tiny_gpt2(), byte_tokenizer(), MDConfig, MDTrainer
    else:
        model, tokenizer, config_class, trainer_class = tiny_t5(), t5_tokenizer(), MDSeq2SeqConfig, MDSeq2SeqTrainer
    lora = LoraConfig(r=4, target_modules=["q", "v"], lora_dropout=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2  # the state of the random numbers must be resumed as well
    args = config_class(
        output_dir=output,
        max_steps=10,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        rationales_per_path="1",
        logging_steps=1,
        save_steps=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        callbacks=[Kill()] if mode == "killed" else [],
        peft_config=lora if student == "t5_lora" else None,
    )
    trainer.train(resume_from_checkpoint=mode == "resumed")
    keep = ("step", "epoch", "loss", "grad_norm", "cot_loss", "pot_loss", *COUNTERS)
    logs = [{k: log[k] for k in keep if k in log} for log in trainer.state.log_history if "num_questions" in log]
    torch.save({"logs": logs, "weights": trainer.model.state_dict()}, f"{output}/result.pt")


def main(folder: str) -> None:
    for student in STUDENTS:
        for mode, output in (("whole", "whole"), ("killed", "parts"), ("resumed", "parts")):
            if (child := os.fork()) == 0:
                train(student, mode, f"{folder}/{output}/{student}")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            expected = -signal.SIGKILL if mode == "killed" else 0
            assert os.waitstatus_to_exitcode(status) == expected, f"{student}, {mode}: {status}"


if __name__ == "__main__":
    main(*sys.argv[1:])
