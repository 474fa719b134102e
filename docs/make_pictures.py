"""Draw the pictures of README and documentation from a whole audit: `python docs/make_pictures.py runs/whole`.

`python docs/make_pictures.py cot` draws the view of a CoT, which takes Chromium. Refusal over the series is drawn by
`assets/make_series/report_series.py --picture`, on more requests.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rim_lens import cot_importance, load_model, load_prompts, load_result
from rim_lens.data import load_wordings
from rim_lens.explore.cot import explore_cot
from rim_lens.plots import save_image

HERE = Path(__file__).resolve().parent / "images"
WIDTH = 720

# name of the picture: folder of the result under the audit's stages
SHARP = {"heads": "heads/ablation", "dose": "heads/head_test", "table2": "series/arms"}
GALLERY = {
    "rates": "behavior/behavior",
    "attention": "heads/refusal_heads",
    "probe": "heads/probe",
    "patterns": "patterns/pattern_costs",
    "neurons": "series/safety_neurons",
    "shift": "neurons/neuron_shift",
    "forgetting": "neurons/forgetting",
    "series_heads": "neurons/series_heads",
}


def main(run: str) -> None:
    """Write the ablation map, the dose curve, table 2 and the gallery as PNG files."""
    for name, folder in (SHARP | GALLERY).items():
        figure = load_result(Path(run) / "stages" / folder).plot()
        if name in ("heads", "dose"):
            figure.update_layout(height=430)
        scale = 1.5 if name in SHARP else 1.0
        print(save_image(figure, HERE / f"{name}.png", width=WIDTH, scale=scale).name)


def cot() -> None:
    """One request with an effort-minimizing, a careful and another effort-minimizing CoT, its last sentence open."""
    model = load_model("smollm2-135m-instruct", adapter=str(HERE.parents[1] / "assets" / "organism" / "aligned"))
    lazy, careful = ([wording.text for wording in load_wordings(kind)] for kind in ("effort_minimizing", "careful"))
    thought = " ".join([lazy[0], careful[0], lazy[1]])
    chats = model.render([load_prompts("harmful")[0]], thinking="prefilled", cot=thought)
    before, last = explore_cot(cot_importance(model, chats))._repr_html_().rsplit("<details", 1)
    page = f"<meta charset=utf-8><body style='font:15px/1.45 sans-serif;margin:14px'>{before}<details open{last}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cot.html").write_text(page, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},590"]
        picture = f"--screenshot={HERE / 'cot.png'}"
        subprocess.run(["chromium", *options, picture, f"file://{folder}/cot.html"], check=True)


if __name__ == "__main__":
    cot() if sys.argv[1] == "cot" else main(sys.argv[1])
