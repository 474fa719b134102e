from .maths import maths_accuracy as maths_accuracy
from .refusal_score import refusal_tokens as refusal_tokens
from .refusal_score import sequence_refusal_score as sequence_refusal_score
