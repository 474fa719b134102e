"""Every public name by what it names: the top level's, then those of the rooms that offer measurements."""

from importlib import import_module

import rim_lens

ROOMS = ("behavior", "capture", "chat", "data", "inference_time", "intervene", "model", "patterns", "training_time")
MODULES = [rim_lens, *(import_module(f"rim_lens.{room}") for room in ROOMS)]
PUBLIC = {
    name: getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if name not in ("__version__", "SetInfo", "Wording", "HeadRecording")
}
