"""A CoT in a notebook, sentence by sentence; click one to read what it does to refusal."""

from dataclasses import dataclass

from markupsafe import Markup, escape

from rim_lens.errors import RimLensError
from rim_lens.inference_time.cot_importance import EFFECTS, CotImportance
from rim_lens.plots.cot_html import cot_title, shaded_cot


@dataclass(frozen=True)
class CotView:
    """One CoT of a `CotImportance`, shaded by one effect; a notebook shows it as HTML."""

    importance: CotImportance
    chat: int
    effect: str

    def _repr_html_(self) -> str:
        title, caption = cot_title(self.importance, self.chat, self.effect)
        shaded = shaded_cot(self.importance, self.chat, self.effect)
        return str(Markup("<h4>{}</h4><p>{}</p>{}").format(escape(title), escape(caption), shaded))


def explore_cot(importance: CotImportance, chat: int = 0, effect: str = "hidden") -> CotView:
    """Show one CoT with its sentences shaded.

    Args:
        importance: from `cot_importance`.
        chat: number of the CoT, from 0.
        effect: "hidden", "cut", "brings" or "resampled".

    Raises:
        RimLensError: no such CoT or effect.
    """
    n = len(importance.scores)
    if effect not in EFFECTS or not 0 <= chat < n:
        raise RimLensError(f"There is no effect {effect!r} of CoT {chat}: {n} CoTs, effects {', '.join(EFFECTS)}.")
    return CotView(importance, chat, effect)
