"""Draw the pictures of README and documentation from a finished audit: `python docs/make_pictures.py runs/demo`."""

import sys
from pathlib import Path

from rim_lens import load_result
from rim_lens.plots import save_image

HERE = Path(__file__).resolve().parent / "images"
WIDTH = 720


def main(run: str) -> None:
    """Write refusal over the series, the ablation map, the dose curve and table 2 as PNG files."""
    stages = Path(run) / "stages"
    series = load_result(stages / "series" / "series")
    pictures = {
        "series": series.plot().update_layout(height=430),
        "heads": load_result(stages / "heads" / "ablation").plot().update_layout(height=430),
        "dose": load_result(stages / "heads" / "head_test").plot().update_layout(height=430),
        "table2": load_result(stages / "series" / "arms").plot(),
    }
    for name, figure in pictures.items():
        print(save_image(figure, HERE / f"{name}.png", width=WIDTH, scale=1.5).name)


if __name__ == "__main__":
    main(sys.argv[1])
