"""How much an audit measures: everything, or what is quick and decides what a small audit can decide.

The stages read their sizes here alone, and the page says what was left out.
"""

from dataclasses import dataclass

from rim_lens.chat.segments import Thinking


@dataclass(frozen=True)
class Extent:
    """Sizes of an audit's stages.

    `harmless`: thinking modes in which harmless requests are asked. `maths`: whether problems are solved in the
    behaviour stage. `given_cots`: whether requests are asked with given CoTs, in whichever stage. `screened`: heads
    that are ablated exactly, those of the largest estimated effect. `doses`: sizes of the tested sets of heads.
    `probe`: whether refusal is read from the residual stream. `problems`: worked maths problems whose likelihood is
    measured at every checkpoint, None for all. `training_data`: whether the shift is predicted from the arms' data.
    `tested_beside`: whether the test of neurons writes answers and measures maths beside the refusal score.
    `thinking_neurons`: whether that stage runs. `left_out`: what is not measured, each in a few words.
    """

    harmless: tuple[Thinking, ...] = ("off", "on")
    maths: bool = True
    given_cots: bool = True
    screened: int = 24  # enough that eight of them support refusal
    doses: tuple[int, ...] = (1, 4, 8)
    probe: bool = True
    problems: int | None = None
    training_data: bool = True
    tested_beside: bool = True
    thinking_neurons: bool = True
    left_out: tuple[str, ...] = ()


WHOLE = Extent()
QUICK = Extent(
    harmless=("off",),
    maths=False,
    given_cots=False,
    doses=(8,),
    probe=False,
    problems=16,
    training_data=False,
    tested_beside=False,
    thinking_neurons=False,
    left_out=(
        "what a given CoT does to refusal, and what each reasoning pattern costs",
        "harmless requests with thinking on",
        "whether maths problems are solved, thinking off and on",
        "where refusal can be read from the residual stream",
        "what zeroing the neurons does to answers and to maths",
        "the shift predicted from the fine-tuning data",
        "what single neurons do, and how thinking shifts them",
    ),
)
