// Draws every figure in the page's light or dark colours, and again when the reader's preference changes.
"use strict";
const rim = {};
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const options = { responsive: true, displaylogo: false, displayModeBar: "hover", showSendToCloud: false };
  const drawings = [...document.querySelectorAll(".drawing")];

  async function draw(box) {
    const figure = JSON.parse(document.getElementById(box.dataset.figure).textContent);
    figure.layout.template = dark.matches ? themes.dark : themes.light;
    await Plotly.react(box, figure.data, figure.layout, options);
    box.dispatchEvent(new Event("drawn"));
  }
  rim.draw = draw;

  // A folded or far-away figure is drawn when it comes near; printing needs all of them.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "800px" });
  drawings.forEach((box) => near.observe(box));
  window.addEventListener("beforeprint", () => drawings.forEach(draw));
  dark.addEventListener("change", () => drawings.filter((box) => box.data).forEach(draw));

  // A link into a folded part unfolds it.
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target && target.closest("details");
    if (folded) folded.open = true;
  }
  window.addEventListener("hashchange", unfold);
  unfold();

  // An element with a class, text and children. Texts are set as text, never read as HTML.
  rim.element = (tag, given = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name === "text") made.textContent = value;
      else if (name === "on") for (const [event, react] of Object.entries(value)) made.addEventListener(event, react);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };
})();
