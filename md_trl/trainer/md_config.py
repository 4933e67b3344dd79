"""The configuration of both trainers: what a student learns, how its batches are laid out, what is not supported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from trl import SFTConfig

from ..errors import InputError
from ..weighting import OBJECTIVES


LAYOUTS = ("padded", "packed", "tree")
WEIGHT_NORMALIZERS = ("rows", "weights", "tokens")
LIGER_LOSSES = ("fused_linear_cross_entropy", "cross_entropy")
"""Kernels of Liger that replace the loss of a model."""

_NUMBERS = (
    (
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_length max_row_tokens "
        "max_target_tokens".split(),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "learning_rate warmup_steps weight_decay max_grad_norm dataloader_num_workers eval_delay "
        "rationale_weight".split(),
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    (["num_train_epochs"], lambda value: 0 < value < math.inf, "more than 0"),
    (["adam_beta1", "adam_beta2"], lambda value: 0 <= value < 1, "from 0 to below 1"),
)
"""Names of numbers, which values are possible, and how to say it."""


@dataclass
class MDConfig(SFTConfig):
    r"""
    Configuration class for the [`MDTrainer`].

    This class includes only the parameters that are specific to Mixed Distillation
    (https://huggingface.co/papers/2312.10730). For a full list of training arguments, please refer to the
    [`~transformers.TrainingArguments`] and [`~trl.SFTConfig`] documentation. `per_device_train_batch_size` is the
    number of questions, whatever the layout and the number of thoughts per question.

    Parameters:
        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"md"`):
            What the student learns:

            - `"md"`: both paths of a question, weighted by its type and lambda (Eq. 2 and 4), and `cot_pot` if the
              rows have it, see [`~md_trl.weighting.path_weights`].
            - `"uniform"`: as `"md"`, with lambda = 1/2 for type 3.
            - `"cot"`, `"pot"`, `"cot_pot"`: single-path distillation, with weight 1 on that path.
            - `"step_by_step"`: the bare gold answer as one task and the CoT as another, weighted by `rationale_weight`
              ([Distilling Step-by-Step](https://huggingface.co/papers/2305.02301)).
            - `"label"`: the bare gold answer of the same questions.
            - `"label_all"`: the bare gold answer of every training question once, whether or not a path solved it
              (Appendix C). Mixed rows have no questions of type 4, so pass the questions of the task, as
              [`~md_trl.tasks.load_questions`] returns them. A `repeat` column is ignored.
        unsolved_path (`str`, *optional*, defaults to `"correct"`):
            What the path that did not solve a question of type 1 or 2 contributes: `"correct"` for its correct
            thoughts, if it has any, or `"majority"` for the thoughts whose answer equals its (wrong) vote, which is
            the literal reading of Eq. 2.
        rationale_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the CoT path if `objective="step_by_step"`. The bare answer has weight 1.
        token_reduction (`str`, *optional*, defaults to `"mean"`):
            Whether the cross-entropy of a thought is the `"mean"` or the `"sum"` over its tokens.
        rationales_per_path (`str` or `int`, *optional*, defaults to `1`):
            Number of different thoughts of a path to draw each time a question is seen, or `"all"`. They are drawn
            without replacement, and anew in each epoch.
        weight_normalizer (`str`, *optional*, defaults to `"rows"`):
            What the sum of weight times loss of flat rows (`prompt`, `completion`, `weight`) is divided by, over the
            whole optimizer step:

            - `"rows"`: the number of rows.
            - `"weights"`: the sum of their weights.
            - `"tokens"`: the number of their target tokens. The loss of a row is then the sum over its tokens,
              whatever `token_reduction`, and with weights of 1 it is that of [`~trl.SFTTrainer`].

            The loss of mixed rows is always divided by the number of questions.

        > Parameters that control the length of the training

        max_target_tokens (`int`, *optional*):
            Number of target tokens to train on, over all processes. Training ends with the first optimizer step that
            reaches it, or at `max_steps` if that comes first. As with `max_steps`, `num_train_epochs` is ignored and
            the data is repeated until then. The number of steps is computed before training, so the learning rate
            schedule ends with it. `num_target_tokens` in the logs counts the tokens so far.

        > Parameters that control the data

        prompt_format (`str`, *optional*, defaults to `"auto"`):
            Format of the prompts: `"plain"` text, the tokenizer's `"chat"` template, or `"auto"` for the chat template
            if the tokenizer has one. The saved student's `md_trl.json` records it. Flat rows contain their prompts:
            `"auto"` recognizes those that the chat template has rendered by how they begin, and conversations are
            always `"chat"`.
        layout (`str`, *optional*, defaults to `"tree"`):
            How the thoughts of a batch are laid out. All layouts have the same loss and gradients:

            - `"tree"`: the thoughts of a question form a prefix tree, in which every common beginning is run once.
              Several trees share a row of at most `max_row_tokens` tokens. A large tree is cut into parts that repeat
              its beginning if that is cheaper.
            - `"packed"`: several thoughts share a row of at most `max_row_tokens` tokens, and each attends only to
              itself.
            - `"padded"`: one thought per row. It replaces the other layouts if the attention implementation does not
              accept masks, like FlashAttention. To have FlashAttention in the other layouts, load the model with
              `attn_implementation="md_trl_varlen"`, which is written for CUDA but has not been run there.

              A model that cannot train exactly in the layout asked for gets `"padded"` and a warning that says why.
        check_layout (`bool`, *optional*, defaults to `True`):
            Whether to compare loss and gradient of a small tree with those of its sequences one by one before training
            starts, which takes nine passes over at most 60 tokens. A model that no layout trains exactly is refused.
            Without the check, layers that only a check can vouch for, such as recurrent ones, lead to `"padded"`.
        max_row_tokens (`int`, *optional*):
            Maximum number of tokens of a row in the layouts `"tree"` and `"packed"`: the number that fits into the
            memory of a GPU. Defaults to `max_length` with SDPA and eager attention, whose masks grow with the square
            of a row, and to no limit with FlexAttention and `md_trl_varlen`, for which a batch is a single row.
        max_length (`int` or `None`, *optional*, defaults to `1024`):
            Maximum number of tokens of a thought with its prompt. Longer thoughts are dropped and counted, never cut.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `bf16`: Defaults to `True` only if there is an accelerator, since bf16 is several times slower on CPUs.
    > - `gradient_checkpointing`: Defaults to off instead of `True`. Set `activation_checkpointing` to turn it on.
    > - `remove_unused_columns`: Defaults to `False` instead of `True`, since the trainer reads the columns itself.
    > - `router_aux_loss_coef`: Defaults to `0.0` instead of the model's own, since the load-balancing loss of a
    >   Mixture of Experts is not part of the objective.

    > [!NOTE]
    > These parameters of [`~trl.SFTConfig`] have another meaning:
    > - `packing`: `True` stands for `layout="packed"`, in training and evaluation.
    > - `use_liger_kernel`: Applies all kernels but those of the loss, which do not support weights.

    > [!WARNING]
    > Values that the objective has no meaning for are refused:
    >
    > | parameter | supported | reason |
    > | --- | --- | --- |
    > | `loss_type` | `"nll"` | The objective is a cross-entropy (Eq. 3). |
    > | `label_smoothing_factor` | `0.0` | The objective is a cross-entropy (Eq. 3). |
    > | `router_aux_loss_coef` | `0.0` | The load-balancing loss is not part of the objective. |
    > | `completion_only_loss` | `None`, `True` | Prompts are never targets. |
    > | `assistant_only_loss` | `False` | All of a completion is a target. Move other turns to the prompt. |
    > | `truncation_mode` | `"keep_start"` | Long thoughts are dropped, never cut. |
    > | `packing_strategy` | `"bfd"` | The other strategies cut thoughts. |
    > | `eval_packing` | with `packing` | `layout` decides what a row holds. |
    > | `padding_free`, `pad_to_multiple_of` | default | `layout` decides what a row holds. |
    > | `neftune_noise_alpha` | with `layout="padded"` | Its noise depends on the length of a row. |
    > | `dataset_text_field`, `dataset_kwargs` | default | Texts are read from columns with fixed names. |
    > | `label_names` | default | The targets are the tokens of thoughts. |
    > | `shuffle_dataset`, `train_sampling_strategy` | default | The trainer draws the questions itself. |
    > | `length_column_name` | default | The trainer draws the questions itself. |
    > | `ignore_data_skip` | without `max_target_tokens` | The steps are computed for the whole order of questions. |
    > | `remove_unused_columns` | `False` | The trainer reads the columns itself. |
    > | `average_tokens_across_devices` | `True` | The loss is divided by the questions of all processes. |
    > | `include_num_input_tokens_seen` | not `"non_padding"` | `num_nodes` in the logs is that number. |
    > | `include_for_metrics`, `batch_eval_metrics` | default | The evaluation keeps no predictions. |
    > | `eval_do_concat_batches` | default | The evaluation keeps no predictions. |
    > | `liger_kernel_config` | without losses | Liger's losses do not support weights. |
    > | `activation_offloading` | on accelerators | There is nothing to offload from. |
    > | `accelerator_config` | no `split_batches`, `dispatch_batches` | A batch of trees cannot be split. |
    > | `parallelism_config` | no context or sequence parallelism | A row cannot be split across devices. |
    >
    > Some data is refused as well:
    >
    > | data | reason |
    > | --- | --- |
    > | rows with `tools` | Students are asked without tools. |
    > | rows with `assistant_masks` | All of a completion is a target. Move other turns to the prompt. |
    > | rows with `image` or `images` | Only text is trained on. |
    > | rows with only `text` or `messages` | They do not say what is prompt and what is completion. |
    > | rows with only `input_ids` | The trainer tokenizes texts itself. |
    > | a `train_dataset` that streams | The number of questions must be known before training. |
    > | a dataset with a transform | It would run once instead of each time a row is read. |
    >
    > [`MDTrainer`] says which arguments of [`~trl.SFTTrainer`] it refuses, and why.
    """

    objective: str = field(
        default="md",
        metadata={"help": "What the student learns (Eq. 2, 4 and baselines).", "choices": list(OBJECTIVES)},
    )
    unsolved_path: str = field(
        default="correct",
        metadata={
            "help": "What the path that did not solve a question of type 1 or 2 contributes: its correct thoughts, or "
            "the thoughts of its (wrong) majority, the literal reading of Eq. 2.",
            "choices": ["correct", "majority"],
        },
    )
    rationale_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the CoT path if `objective=step_by_step`. The bare answer has weight 1."},
    )
    token_reduction: str = field(
        default="mean",
        metadata={
            "help": "Whether the cross-entropy of a thought is the mean or the sum over its tokens.",
            "choices": ["mean", "sum"],
        },
    )
    rationales_per_path: str = field(
        default="1",
        metadata={
            "help": "Number of different thoughts of a path to draw each time a question is seen, or `all`.",
        },
    )
    weight_normalizer: str = field(
        default="rows",
        metadata={
            "help": "What the loss of rows with `prompt`, `completion` and `weight` is divided by: the number of "
            "rows, the sum of their weights or the number of their target tokens.",
            "choices": list(WEIGHT_NORMALIZERS),
        },
    )
    max_target_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Number of target tokens to train on, over all processes, or `max_steps` if that comes first. "
            "`num_train_epochs` is ignored."
        },
    )
    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "Format of the prompts: plain text, the tokenizer's chat template, or auto for the chat template "
            "if the tokenizer has one.",
            "choices": ["auto", "plain", "chat"],
        },
    )
    layout: str = field(
        default="tree",
        metadata={
            "help": "How the thoughts of a batch are laid out. All layouts have the same loss.",
            "choices": list(LAYOUTS),
        },
    )
    check_layout: bool = field(
        default=True,
        metadata={
            "help": "Whether to compare loss and gradient of a small tree with those of its sequences one by one "
            "before training starts."
        },
    )
    max_row_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of a row in the layouts `tree` and `packed`. Defaults to `max_length` "
            "with SDPA and eager attention, and to no limit with FlexAttention and `md_trl_varlen`."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Deprecated name of `activation_checkpointing`: trade compute for memory."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False, since the trainer reads the columns itself."}
    )
    router_aux_loss_coef: float | None = field(
        default=0.0,
        metadata={"help": "Must stay 0, since the load-balancing loss of MoE models is not part of the objective."},
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = torch.accelerator.is_available() and not self.use_cpu
        self._check_numbers()
        super().__post_init__()
        for name in ("objective", "unsolved_path", "token_reduction", "weight_normalizer", "prompt_format", "layout"):
            value, choices = getattr(self, name), MDConfig.__dataclass_fields__[name].metadata["choices"]
            if value not in choices:
                raise InputError(f"Unknown `{name}` {value!r}. Choose one of {', '.join(choices)}.")
        if self.ignore_data_skip and self.max_target_tokens is not None:
            raise InputError(
                "`ignore_data_skip=True` is not supported with `max_target_tokens`: a resumed training would see "
                "other questions than those that were counted."
            )
        self.rationales_per_path = str(self.rationales_per_path)
        if self.rationales_per_path != "all" and not (
            self.rationales_per_path.isdecimal() and int(self.rationales_per_path) > 0
        ):
            raise InputError(
                f"`rationales_per_path` must be a positive integer or 'all', got {self.rationales_per_path!r}."
            )
        self.router_aux_loss_coef = self.router_aux_loss_coef or 0.0
        if self.weight_normalizer == "tokens":
            self.token_reduction = "sum"
        if self.packing and self.layout != "padded":
            self.layout, self.packing, self.eval_packing = "packed", False, None
        for name, (is_set, reason) in self._unsupported().items():
            if is_set:
                raise InputError(
                    f"`{type(self).__name__}` does not support `{name}={getattr(self, name)!r}`: {reason}."
                )
        if self.use_liger_kernel:
            self.liger_kernel_config = (self.liger_kernel_config or {}) | dict.fromkeys(LIGER_LOSSES, False)

    def _check_numbers(self) -> None:
        """Refuse numbers that nothing can be trained with, which torch would notice after loading the model."""
        for names, is_possible, expected in _NUMBERS:
            for name in names:
                value = getattr(self, name)
                if isinstance(value, int | float) and not is_possible(value):
                    raise InputError(f"`{name}` must be {expected}, got {value}.")
        if self.max_steps < 1 and self.max_steps != -1:
            raise InputError(
                f"`max_steps` must be at least 1, got {self.max_steps}. Leave it out to train for `num_train_epochs`."
            )

    # For each option that would change the objective, whether it is set and why it is not supported
    def _unsupported(self) -> dict[str, tuple[bool, str]]:
        by_layout = "set `layout` instead"
        no_metrics = "no predictions are kept that metrics could be computed from"
        own_order = "the trainer shuffles by itself, since a question may occur several times in an epoch"
        own_text = "texts are read from the columns of mixed rows, or from `prompt` and `completion`"
        parallel, loader = self.parallelism_config, self.accelerator_config
        return {
            "label_smoothing_factor": (
                self.label_smoothing_factor > 0,
                "the loss would not be the cross-entropy of Eq. 3",
            ),
            "loss_type": (self.loss_type != "nll", "the objective is a cross-entropy; leave `loss_type='nll'`"),
            "completion_only_loss": (self.completion_only_loss is False, "prompts are never targets"),
            "assistant_only_loss": (
                self.assistant_only_loss,
                "all of a completion is a target; move the turns that are not to the prompt",
            ),
            "router_aux_loss_coef": (
                self.router_aux_loss_coef != 0.0,
                "the load-balancing loss is not part of the objective; leave it at 0.0",
            ),
            "liger_kernel_config": (
                any((self.liger_kernel_config or {}).get(name) for name in LIGER_LOSSES),
                f"Liger's losses do not support weights; leave {' and '.join(LIGER_LOSSES)} off",
            ),
            "activation_offloading": (
                self.activation_offloading and (self.use_cpu or not torch.accelerator.is_available()),
                "there is no accelerator to offload from",
            ),
            "average_tokens_across_devices": (
                not self.average_tokens_across_devices,
                "the loss is divided by the questions of all processes; leave it True",
            ),
            "neftune_noise_alpha": (
                self.neftune_noise_alpha is not None and self.layout != "padded",
                "its noise depends on the length of a row; set `layout='padded'`",
            ),
            "packing": (self.packing, "it stands for `layout='packed'`; leave `layout` out"),
            "eval_packing": (bool(self.eval_packing), by_layout),
            "packing_strategy": (
                self.packing_strategy != "bfd",
                "the other strategies cut thoughts; leave `packing_strategy='bfd'`",
            ),
            "padding_free": (self.padding_free, by_layout),
            "pad_to_multiple_of": (self.pad_to_multiple_of is not None, by_layout),
            "truncation_mode": (self.truncation_mode != "keep_start", "long thoughts are dropped, never cut"),
            "train_sampling_strategy": (self.train_sampling_strategy != "random", own_order),
            "length_column_name": (self.length_column_name != "length", own_order),
            "shuffle_dataset": (self.shuffle_dataset, own_order),
            "remove_unused_columns": (self.remove_unused_columns, "the trainer reads the columns itself"),
            "dataset_text_field": (self.dataset_text_field != "text", own_text),
            "dataset_kwargs": (bool(self.dataset_kwargs), own_text),
            "label_names": (self.label_names is not None, "the targets are the tokens of thoughts"),
            "include_num_input_tokens_seen": (
                self.include_num_input_tokens_seen == "non_padding",
                "`num_nodes` in the logs is that number; use 'all' to count padding too",
            ),
            "include_for_metrics": (bool(self.include_for_metrics), no_metrics),
            "batch_eval_metrics": (self.batch_eval_metrics, no_metrics),
            "eval_do_concat_batches": (not self.eval_do_concat_batches, no_metrics),
            "accelerator_config": (
                bool(loader.split_batches or loader.dispatch_batches),
                "a batch of trees cannot be split; leave `split_batches` and `dispatch_batches` off",
            ),
            "parallelism_config": (
                parallel is not None and (parallel.cp_enabled or parallel.sp_enabled),
                "a row cannot be split across devices; leave context and sequence parallelism off",
            ),
        }
