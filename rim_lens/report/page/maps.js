// Head maps share one selection. A click, or the arrow keys and Enter, chooses a cell in any of them.
"use strict";
(() => {
  const maps = [...document.querySelectorAll('.drawing[data-cells="heads"]')];
  const spoken = document.getElementById("spoken");
  const cursors = new Map(); // map -> {layer, head} under its cursor

  const values = (box) => box._fullData && box._fullData[0] && box._fullData[0].z;
  const nameOf = ({ layer, head }) => `L${layer}H${head}`;

  function placeOf(name) {
    const found = /^L(\d+)H(\d+)$/.exec(name || "");
    return found && { layer: Number(found[1]), head: Number(found[2]) };
  }

  function inside(box, place) {
    const z = values(box);
    return Boolean(z && place && place.head >= 0 && place.head < z.length && place.layer >= 0 && place.layer < z[0].length);
  }

  // Lays a frame over a cell; none where the cell is not in view.
  function frame(box, kind, place) {
    let mark = box.querySelector(`:scope > .${kind}`);
    if (!mark) box.append((mark = rim.element("div", { class: `mark ${kind}` })));
    const { xaxis, yaxis } = box._fullLayout;
    mark.hidden = !inside(box, place);
    if (mark.hidden) return;
    const x = [-0.5, 0.5].map((half) => xaxis.l2p(place.layer + half)).sort((a, b) => a - b);
    const y = [-0.5, 0.5].map((half) => yaxis.l2p(place.head + half)).sort((a, b) => a - b);
    mark.hidden = x[1] <= 0 || y[1] <= 0 || x[0] >= xaxis._length || y[0] >= yaxis._length;
    Object.assign(mark.style, {
      left: `${xaxis._offset + x[0]}px`,
      top: `${yaxis._offset + y[0]}px`,
      width: `${x[1] - x[0]}px`,
      height: `${y[1] - y[0]}px`,
    });
  }

  function marks(box) {
    if (!values(box)) return;
    frame(box, "chosen", placeOf(rim.selected));
    frame(box, "cursor", box === document.activeElement ? cursors.get(box) : null);
  }

  function strongest(box) {
    const best = { layer: 0, head: 0, size: -1 };
    values(box).forEach((row, head) => row.forEach((value, layer) => {
      if (Math.abs(value) > best.size) Object.assign(best, { layer, head, size: Math.abs(value) });
    }));
    return { layer: best.layer, head: best.head };
  }

  // What the hatch over a head that was not measured says.
  function missing(box, place) {
    const hatch = box._fullData.find((trace) => trace.type === "scatter" && trace.customdata);
    const at = hatch ? hatch.customdata.findIndex((_, i) => hatch.x[i] === place.layer && hatch.y[i] === place.head) : -1;
    return at < 0 ? "" : hatch.customdata[at];
  }

  function told(box, place) {
    const text = (box._fullData[0].text[place.head] || [])[place.layer] || missing(box, place);
    return text ? new DOMParser().parseFromString(text.replaceAll("<br>", ", "), "text/html").body.textContent : `${nameOf(place)}, not measured`;
  }

  function moveTo(box, place) {
    if (!inside(box, place)) return;
    cursors.set(box, place);
    marks(box);
    spoken.textContent = told(box, place);
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };

  function onKey(box, event) {
    const here = cursors.get(box);
    if (!here || event.ctrlKey || event.altKey || event.metaKey) return;
    const step = steps[event.key];
    if (step) moveTo(box, { layer: here.layer + step[0], head: here.head + step[1] });
    else if (event.key === "Enter" || event.key === " ") rim.select(nameOf(here), { from: box, enter: rim.selected === nameOf(here) });
    else return;
    event.preventDefault();
  }

  // Plotly lays a cover over the page while the pointer is down, so no click arrives; empty cells report none either.
  function onPress(box, down) {
    const edge = box.querySelector(".nsewdrag")?.getBoundingClientRect();
    if (!edge || down.button !== 0 || !values(box)) return;
    window.addEventListener("pointerup", (up) => {
      if (Math.hypot(up.clientX - down.clientX, up.clientY - down.clientY) > 5) return; // a zoom
      const { xaxis, yaxis } = box._fullLayout;
      const [x, y] = [up.clientX - edge.left, up.clientY - edge.top];
      if (x < 0 || y < 0 || x > edge.width || y > edge.height) return;
      const place = { layer: Math.round(xaxis.p2l(x)), head: Math.round(yaxis.p2l(y)) };
      if (!inside(box, place)) return;
      cursors.set(box, place);
      rim.select(nameOf(place), { from: box });
    }, { once: true });
  }

  // Where a cell lies in the window, so that the panel can keep it in view.
  rim.cellOf = (box, name) => {
    const mark = box.querySelector(":scope > .chosen");
    return placeOf(name) && mark && !mark.hidden ? mark.getBoundingClientRect() : null;
  };

  for (const box of maps) {
    box.addEventListener("drawn", () => {
      if (!cursors.has(box)) cursors.set(box, inside(box, placeOf(rim.selected)) ? placeOf(rim.selected) : strongest(box));
      box.on("plotly_afterplot", () => marks(box));
      marks(box);
    });
    box.addEventListener("focus", () => values(box) && moveTo(box, cursors.get(box)));
    box.addEventListener("blur", () => marks(box));
    box.addEventListener("keydown", (event) => onKey(box, event));
    box.addEventListener("pointerdown", (event) => onPress(box, event), true);
  }
  document.addEventListener("unit", () => maps.forEach(marks));
})();
