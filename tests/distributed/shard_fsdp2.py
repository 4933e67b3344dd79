"""Run by `test_distributed.py` under `torchrun`: loss and gradients of a student sharded with FSDP2 on CPUs."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, leave_together, tiny_llama
from test_trainer import ROWS

from md_trl import MDConfig, MDTrainer
from md_trl.trainer import lm_head
from md_trl.trainer.data_sampler import DrawnQuestions


def loss_and_gradients(output: str, group: str) -> dict[str, Any]:
    args = MDConfig(output_dir=output, rationales_per_path="all", use_cpu=True, report_to="none")
    rows = Dataset.from_list(ROWS)
    trainer = MDTrainer(model=tiny_llama(), args=args, train_dataset=rows, processing_class=byte_tokenizer())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = trainer.model
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if group == "tail":  # as accelerate does
        fully_shard(model.model.embed_tokens, mesh=mesh)
        fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())

    questions = DrawnQuestions(trainer.train_dataset, args)
    mine = range(dist.get_rank(), len(questions), dist.get_world_size())
    batch = trainer.data_collator([questions[0, position] for position in mine])
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
    assert trainer._scorer.chunked
    loss.backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    dist.all_reduce(loss.detach_())
    return {"loss": loss.item() / dist.get_world_size(), "gradients": gradients}


def main(output: str) -> None:
    found = {"root": loss_and_gradients(output, "root"), "tail": loss_and_gradients(output, "tail")}
    lm_head._cpu_scores = lm_head._accelerator_scores
    found["tail, on an accelerator"] = loss_and_gradients(output, "tail")
    if dist.get_rank() == 0:
        torch.save(found, f"{output}/fsdp2.pt")
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
