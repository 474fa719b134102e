"""Inspect: refusal and maths as tasks of the Inspect evaluation framework, on a LensModel (extra: inspect).

    inspect eval rim_lens/refusal --model rim_lens/smollm2-135m-instruct -M adapter=assets/organism/aligned -T
    thinking=on

Inspect finds this room through its entry point; nothing else in the package imports it.
"""

from importlib.util import find_spec

from rim_lens.errors import RimLensError

if find_spec("inspect_ai") is None:
    raise RimLensError("rim_lens.evals needs the Inspect framework: pip install 'rim-lens[inspect]'.")

from rim_lens.evals.models import inspect_model, lens_api
from rim_lens.evals.scorers import maths_answer, refusal_label
from rim_lens.evals.tasks import maths, refusal

__all__ = ["inspect_model", "lens_api", "maths", "maths_answer", "refusal", "refusal_label"]
