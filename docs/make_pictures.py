"""Draw the pictures of README and documentation from a whole audit: `python docs/make_pictures.py runs/whole`.

Refusal over the series is drawn by `assets/make_series/report_series.py --picture`, on more requests.
"""

import sys
from pathlib import Path

from rim_lens import load_result
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


if __name__ == "__main__":
    main(sys.argv[1])
