"""Registers the provider with Inspect, and hands it a LensModel that is loaded already."""

from typing import TYPE_CHECKING, Any

from inspect_ai.model import Model, ModelAPI, get_model, modelapi

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel


@modelapi(name="rim_lens")
def lens_api() -> type[ModelAPI]:
    """The provider's class, imported when a model is asked for: every `inspect` command reads this module."""
    from rim_lens.evals.provider import RimLensAPI

    return RimLensAPI


def inspect_model(model: "LensModel", **model_args: Any) -> Model:
    """A LensModel as a model of Inspect's, for `inspect_ai.eval(task, model=...)`.

    Args:
        model: the model; it is not copied, and is as before after each batch.
        model_args: `ablate_heads`, `n_heads`, `ablate_neurons`, `positions`, `batch_size`, `record`, as with `-M` in
            the shell.

    Raises:
        EvalError: an unknown argument, head or neuron.

    """
    # Inspect's cache of models would take another LensModel of the same name for this one.
    return get_model(f"rim_lens/{model.name}", memoize=False, lens_model=model, **model_args)
