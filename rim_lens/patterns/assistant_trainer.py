"""trl's SFTTrainer with four additions.

These are a loss averaged per example, held neurons, penalties on shifts, and steps in parts.

    loss = mean over tokens of −log p   (trl's own)
         | mean over examples of the mean over the example's tokens

A step whose examples do not fit into memory together is taken in parts: gradients add up to those of the whole step, so
what is learned stays the same up to rounding. Imported only when a run starts: trl is an extra.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from rim_lens.model.fitting import AtOnce
from rim_lens.patterns.held_neurons import Slice
from rim_lens.patterns.shift_penalty import ShiftPenalty
from rim_lens.patterns.training_plan import TrainingSettings
from rim_lens.patterns.training_rows import IGNORED

LOGGED = 12  # points of the loss curve


class AssistantTrainer(SFTTrainer):
    """SFTTrainer with `per_example` loss, `penalties`, and as many examples `at_once` as fit into memory."""

    loss_is_scaled_for_ga: Any = True  # parts of a step are weighted here
    at_once: AtOnce
    per_example = False
    penalties: Sequence[ShiftPenalty] = ()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one step, in parts where it does not fit as a whole; returns its loss."""
        n_examples = len(inputs["labels"])
        whole = n_examples if self.per_example else num_items_in_batch
        if whole is None:
            whole = learned_tokens(inputs["labels"]).sum()

        def backward(size: int) -> Tensor:
            model.zero_grad()  # of a try that did not fit
            parts = [
                {name: value[begin : begin + size] for name, value in inputs.items()}
                for begin in range(0, n_examples, size)
            ]
            self.current_gradient_accumulation_steps = len(parts)  # what trl averages a router's own loss over
            losses = [super(AssistantTrainer, self).training_step(model, part, whole) for part in parts]
            for penalty in self.penalties:
                for addend in penalty.addends(model, size):
                    self.accelerator.backward(addend)
                    losses.append(addend.detach())
            return torch.stack(losses).sum()

        loss = self.at_once.try_with(backward, n_examples)
        for penalty in self.penalties:
            penalty.turn += 1
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a part of a step, summed over it and divided by the step's number of examples or tokens."""
        if self.per_example and not return_outputs:
            return example_loss(model, inputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def example_loss(model: Any, inputs: dict[str, Tensor], n_examples: int) -> Tensor:
    """Negative log-likelihood per learned token of each example, averaged over the step's examples."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    targets = inputs["labels"][:, 1:]
    each = cross_entropy(logits[:, :-1].transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none")
    return (each.sum(dim=1) / learned_tokens(inputs["labels"]).sum(dim=1).clamp(min=1)).sum() / n_examples


def learned_tokens(labels: Int[Tensor, "example pos"]) -> Bool[Tensor, "example target"]:
    """Which predicted tokens have a loss."""
    return labels[:, 1:] != IGNORED


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
    penalties: Sequence[ShiftPenalty] = (),
    save: Callable[[int], None],
) -> list[dict[str, float]]:
    """Train the model in place; returns trl's log, one entry per logged step."""
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
    trainer.per_example, trainer.penalties = settings.loss_mean == "example", penalties
    trainer.at_once = AtOnce(settings.batch_size, "finetune", "examples")
    torch.manual_seed(seed)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]
