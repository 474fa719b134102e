"""Draws docs/images/rooms.svg: the rooms of the package and what imports what, read from the source.

    python docs/rooms.py        write the picture; `mkdocs build` does so by itself

A room stands in the row of its longest chain of imports; an arrow leads from a room to one that imports it. Arrows that
others imply (a → c beside a → b → c) are left out.
"""

import ast
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, PICTURE = ROOT / "rim_lens", ROOT / "docs" / "images" / "rooms.svg"
WIDTH, HEIGHT, ACROSS, DOWN = 128, 30, 146, 64


def room_of(path: Path) -> str:
    """A file's room: its folder, or its own name; results_store.py and the like belong to results."""
    parts = path.relative_to(PACKAGE).parts
    name = parts[0].removesuffix(".py")
    return name if len(parts) > 1 else name.split("_")[0]


def imports() -> networkx.DiGraph:
    """Rooms with their lines of code, and an edge to each room from every room that it imports."""
    graph: networkx.DiGraph = networkx.DiGraph()
    files = {path: room_of(path) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"}
    for path, room in files.items():
        lines = graph.nodes[room]["lines"] if room in graph else 0
        graph.add_node(room, lines=lines + len(path.read_text().splitlines()))
    for path, room in files.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        for node in ast.walk(tree):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("rim_lens."):
                other = room_of(PACKAGE.joinpath(*module.split(".")[1:]))
                if other != room and other in graph:
                    graph.add_edge(other, room)
    return graph


def picture(graph: networkx.DiGraph) -> str:
    """The graph as SVG, rows from top to bottom."""
    rows: list[list[str]] = [sorted(row) for row in networkx.topological_generations(graph)]
    widest = max(map(len, rows))
    place = {
        room: (int((column + (widest - len(row)) / 2) * ACROSS) + 10, y * DOWN + 10)
        for y, row in enumerate(rows)
        for column, room in enumerate(row)
    }
    width, height = widest * ACROSS + 10, len(rows) * DOWN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12"><title>Rooms of rim_lens and what imports what</title>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8A8F98"/></marker></defs>'
    ]
    for start, end in networkx.transitive_reduction(graph).edges:
        (x0, y0), (x1, y1) = place[start], place[end]
        ends = f"{x0 + WIDTH // 2} {y0 + HEIGHT} {x1 + WIDTH // 2} {y1}"
        parts.append(f'<path d="M{ends}" stroke="#8A8F98" fill="none" marker-end="url(#tip)"/>')
    for room, (x, y) in place.items():
        lines = graph.nodes[room]["lines"]
        parts.append(
            f'<g id="{room}"><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#F4F6F8" '
            f'stroke="#0072B2"/><text x="{x + WIDTH // 2}" y="{y + 19}" text-anchor="middle" fill="#1B1F23">{room} '
            f'<tspan fill="#6A737D">{lines:,}</tspan></text></g>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def on_pre_build(config: object) -> None:
    """Mkdocs asks here before it reads the pages."""
    PICTURE.write_text(picture(imports()))


if __name__ == "__main__":
    on_pre_build(None)
