from .activations import head_outputs as head_outputs
from .activations import residuals as residuals
from .attention import attention_rows as attention_rows
from .attention import segment_masses as segment_masses
from .neuron_sets import matched_controls as matched_controls
