"""What stays on a model.

Torch hooks, replaced forwards, TransformerLens hooks, switched implementations, written weights.
"""

from collections.abc import Iterator
from typing import Any

from rim_lens.model.lens_model import LensModel

SWITCHES = ("_attn_implementation", "_experts_implementation")


def state_of(model: LensModel, bridge: Any) -> dict[str, Any]:
    """Everything that an intervention could have left changed, by name. `bridge` is None where there is none."""
    state: dict[str, Any] = {"active taps": len(model.active_taps), "active batch": model.active_batch}
    for kind, tree in (("model", model.hf), ("bridge", bridge)):
        if tree is not None:
            state |= dict(_of_tree(kind, tree))
    for name, value in model.module.named_parameters():
        state[f"weight {name}"] = (value.data_ptr(), None if value.is_inference() else value._version)
    return state


def _of_tree(kind: str, tree: Any) -> Iterator[tuple[str, Any]]:
    for name, module in tree.named_modules():
        hooks = (list(module._forward_hooks), list(module._forward_pre_hooks), "forward" in module.__dict__)
        yield f"hooks on {kind} {name or 'root'}", hooks
    for name, point in getattr(tree, "hook_dict", {}).items():
        yield f"TransformerLens hooks on {name}", len(point.fwd_hooks) + len(point.bwd_hooks)
    config = getattr(tree, "config", None)
    for switch in SWITCHES:
        yield f"{kind} config.{switch}", getattr(config, switch, None)


def changed_names(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose value is another now."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
