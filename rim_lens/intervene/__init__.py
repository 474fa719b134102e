"""What is changed in a pass: context managers that compose, hold in generation too, and restore the model."""

from rim_lens.intervene.heads import ablate_heads, patch_heads, scale_heads
from rim_lens.intervene.knock_out import knock_out
from rim_lens.intervene.neurons import ablate_neurons, scale_neurons
from rim_lens.intervene.recording import HeadRecording, record_heads
from rim_lens.intervene.steer import steer

__all__ = [
    "HeadRecording",
    "ablate_heads",
    "ablate_neurons",
    "knock_out",
    "patch_heads",
    "record_heads",
    "scale_heads",
    "scale_neurons",
    "steer",
]
