"""Public prompt sets by short name: where each is published and which columns hold what.

Places, columns and sizes follow the sets' own pages; revisions are pinned wherever the hosts publish them to
everybody. Some sets touch topics that the built-in ones leave out (sexual content, weapons, children): loading
one is the user's own choice, and its licence is the user's to keep.
"""

from dataclasses import dataclass, replace
from typing import Literal

from rim_lens.data.schemas import Columns

Kind = Literal["harmful", "harmless", "maths"]
_GITHUB = "https://raw.githubusercontent.com/"


@dataclass(frozen=True)
class PublicSet:
    """A published prompt set.

    `where` is a hub data set id, or the address of the file that the authors publish. `only` keeps the rows
    with this value in this column; `split_names` gives each split's category where files stand for categories.
    """

    name: str
    kind: Kind
    where: str
    columns: Columns
    size: int
    licence: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    only: tuple[str, str] | None = None
    gated: bool = False
    split_names: tuple[tuple[str, str], ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether the set is one file at an address rather than a hub data set."""
        return "://" in self.where

    @property
    def source(self) -> str:
        """Where the set comes from, with its pinned revision."""
        return self.where if self.revision is None else f"{self.where}@{self.revision}"


_HEX_PHI_CATEGORIES = (
    ("category_1", "Illegal Activity"),
    ("category_3", "Hate/Harass/Violence"),
    ("category_4", "Malware"),
    ("category_5", "Physical Harm"),
    ("category_6", "Economic Harm"),
    ("category_7", "Fraud/Deception"),
    ("category_8", "Adult Content"),
    ("category_9", "Political Campaigning"),
    ("category_10", "Privacy Violation Activity"),
    ("category_11", "Tailored Financial Advice"),
)
_JAILBREAKBENCH = PublicSet(
    "jailbreakbench",
    "harmful",
    "JailbreakBench/JBB-Behaviors",
    Columns("Goal", category="Category", pair="Index"),
    size=100,
    licence="MIT",
    revision="886acc352a31533ffbcf4ef22c744658688086fc",
    config="behaviors",
    split="harmful",
)
_XSTEST = PublicSet(
    "xstest",
    "harmless",
    "Paul/XSTest",
    Columns("prompt", category="type"),
    size=250,
    licence="CC-BY-4.0",
    revision="f600c994b256f12867dfa5b3eb3d545a3e62f8b5",
    only=("label", "safe"),
)
_ALL = (
    PublicSet(
        "advbench",
        "harmful",
        _GITHUB + "llm-attacks/llm-attacks/098262edf85f807224e70ecd87b9d83716bf6b73"
        "/data/advbench/harmful_behaviors.csv",
        Columns("goal"),
        size=520,
        licence="MIT",
    ),
    PublicSet(
        "harmbench",
        "harmful",
        _GITHUB + "centerforaisafety/HarmBench/8e1604d1171fe8a48d8febecd22f600e462bdcdd"
        "/data/behavior_datasets/harmbench_behaviors_text_all.csv",
        Columns("Behavior", category="SemanticCategory"),
        size=200,
        licence="MIT",
        only=("FunctionalCategory", "standard"),  # the others need a context or ask for song lyrics
    ),
    _JAILBREAKBENCH,
    replace(_JAILBREAKBENCH, name="jailbreakbench-benign", kind="harmless", split="benign"),
    PublicSet(
        "strongreject",
        "harmful",
        _GITHUB + "alexandrasouly/strongreject/3432b2d696b428f242bd507df96d80f686571d5e"
        "/strongreject_dataset/strongreject_dataset.csv",
        Columns("forbidden_prompt", category="category"),
        size=313,
        licence="MIT",
    ),
    _XSTEST,
    replace(_XSTEST, name="xstest-unsafe", kind="harmful", size=200, only=("label", "unsafe")),
    PublicSet(
        "sorry-bench",
        "harmful",
        "sorry-bench/sorry-bench-202503",
        Columns("turns", category="category"),
        size=440,
        licence="SORRY-Bench licence",
        only=("prompt_style", "base"),  # the 20 other styles rephrase or encode the same requests
        gated=True,
    ),
    PublicSet(
        "hex-phi",
        "harmful",
        "LLM-Tuning-Safety/HEx-PHI",
        Columns("prompt", category="split"),
        size=300,
        licence="HEx-PHI licence",
        gated=True,
        split_names=_HEX_PHI_CATEGORIES,
    ),
    PublicSet(
        "gsm8k",
        "maths",
        "openai/gsm8k",
        Columns("question", answer="answer"),
        size=1319,
        licence="MIT",
        revision="740312add88f781978c0658806c59bc2815b9866",
        config="main",
        split="test",
    ),
    PublicSet(
        "gsm8k-train",  # to train on: rationales come with the answers
        "maths",
        "openai/gsm8k",
        Columns("question", answer="answer"),
        size=7473,
        licence="MIT",
        revision="740312add88f781978c0658806c59bc2815b9866",
        config="main",
        split="train",
    ),
    PublicSet(
        "math-500",
        "maths",
        "HuggingFaceH4/MATH-500",
        Columns("problem", category="subject", answer="answer", rationale="solution"),
        size=500,
        licence="MIT",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        split="test",
    ),
    PublicSet(
        "math-401",
        "maths",
        _GITHUB + "GanjinZero/math401-llm/acbff6acd7bfcb8d07aedbec2e47c042024793a9/math401.json",
        Columns("query", answer="response"),
        size=401,
        licence="none stated",
    ),
)
PUBLIC_SETS: dict[str, PublicSet] = {entry.name: entry for entry in _ALL}
