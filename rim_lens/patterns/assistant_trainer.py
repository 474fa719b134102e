"""trl's SFTTrainer with three additions: a loss averaged per example, held neurons, and a penalty on their shift.

    loss = mean over tokens of −log p   (trl's own)
         | mean over examples of the mean over the example's tokens

Imported only when a run starts: trl is an extra.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from rim_lens.patterns.held_neurons import ShiftPenalty, Slice
from rim_lens.patterns.training_plan import TrainingSettings
from rim_lens.patterns.training_rows import IGNORED

LOGGED = 12  # points of the loss curve


class AssistantTrainer(SFTTrainer):
    """SFTTrainer with `per_example` loss and a `penalty`."""

    per_example = False
    penalty: ShiftPenalty | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a batch, as set."""
        if self.per_example and not return_outputs:
            loss = example_loss(model, inputs)
        else:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.penalty is None or return_outputs:
            return loss
        return loss + self.penalty(model)


def example_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Negative log-likelihood averaged over each example's learned tokens, then over the examples."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    targets = inputs["labels"][:, 1:]
    each = cross_entropy(logits[:, :-1].transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none")
    learned = targets != IGNORED
    return (each.sum(dim=1) / learned.sum(dim=1).clamp(min=1)).mean()


class AfterStep(TrainerCallback):
    """Puts held slices back after every optimizer step, and calls `save` at the steps asked for and at the end."""

    def __init__(self, slices: Sequence[Slice], steps: Sequence[int], save: Callable[[int], None]) -> None:
        self.slices, self.steps, self.save = slices, set(steps), save

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called right after the optimizer has moved the weights."""
        for one in self.slices:
            one.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when a step is counted."""
        if state.global_step in self.steps or (not self.steps and state.global_step == state.max_steps):
            self.save(state.global_step)


def trained(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, list[int]]],
    settings: TrainingSettings,
    seed: int,
    steps: Sequence[int],
    folder: str,
    *,
    slices: Sequence[Slice] = (),
    penalty: ShiftPenalty | None = None,
    save: Callable[[int], None],
) -> list[dict[str, float]]:
    """Train the model in place; returns trl's log, one entry a logged step."""
    on_cuda = next(model.parameters()).is_cuda
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=steps[-1] if steps else -1,
        warmup_steps=settings.warmup,
        lr_scheduler_type="linear" if settings.decay else "constant_with_warmup",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=on_cuda,
        use_cpu=not on_cuda,
        dataloader_pin_memory=on_cuda,
        gradient_checkpointing=on_cuda,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=max(1, steps[-1] // LOGGED) if steps else 10,
        logging_first_step=True,
        max_length=None,
        train_sampling_strategy="random" if settings.shuffle else "sequential",
        seed=seed,
    )
    trainer = AssistantTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        callbacks=[AfterStep(slices, steps, save)],
    )
    trainer.per_example, trainer.penalty = settings.loss_mean == "example", penalty
    torch.manual_seed(seed)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
