"""The model hub: is it there, and its errors as one sentence within seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

from rim_lens.errors import RimLensError

TIMEOUT_S = 4.0


def check_reachable(name: str, revision: str | None) -> None:
    """Do nothing when the model is in the local hub cache or the hub answers.

    Raises:
        RimLensError: the hub cannot be reached, does not have the model, or asks for a login.

    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise RimLensError(f"{name!r} is neither a known name, a path nor a hub id; see `rim-lens models`.") from error
    except GatedRepoError as error:
        raise RimLensError(f"The model {name} is gated: accept its terms on the hub and log in first.") from error
    except RepositoryNotFoundError as error:
        raise RimLensError(f"The hub has no model {name}; check the spelling, or log in if it is private.") from error
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise unreachable(name, error) from error


def unreachable(name: str, error: Exception) -> RimLensError:
    """The sentence for a hub that does not answer."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return RimLensError(
        f"The hub could not be reached for {name} ({reason}); check the name and the network, or use a local folder, "
        "a .gguf file or smollm2-135m-instruct, which needs no hub."
    )


@contextmanager
def translated_hub_errors(location: str) -> Iterator[None]:
    """Loading errors of transformers as a RimLensError that names the model.

    Besides missing files these are whatever a config makes transformers trip over: a package that it needs and that is
    not installed, an unknown method of quantisation or kind of model, fields that contradict each other.
    """
    try:
        yield
    except RimLensError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not isinstance(error, OSError | ValueError | ImportError):
            reason = f"{type(error).__name__}: {reason}"
        pickled = "no file named model.safetensors" in reason or "loaded with `safetensors`" in reason
        instead = (
            "; save it as safetensors, or pass trust_remote_code=True if you trust its pickled weights"
            if pickled
            else "; install it, or use a copy of the model that needs no such package"
            if isinstance(error, ImportError)
            else ""
        )
        raise RimLensError(f"The model {location} could not be loaded ({reason}){instead}.") from error
