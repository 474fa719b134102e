// Draws every figure in the page's light or dark colours, and again when the reader's preference changes.
"use strict";
const rim = {};
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const options = { responsive: true, displaylogo: false, displayModeBar: "hover", showSendToCloud: false };
  const drawings = [...document.querySelectorAll(".drawing")];

  // A text in lines of about so many letters.
  function wrapped(text, most) {
    if (typeof text !== "string" || text.includes("<")) return text;
    const lines = [""];
    for (const word of text.split(" ")) {
      const line = lines.at(-1);
      if (line && line.length + word.length >= most) lines.push(word);
      else lines[lines.length - 1] = line ? `${line} ${word}` : word;
    }
    return lines.join("<br>");
  }

  // On a phone titles and labels take more lines, so that none is cut and the drawing keeps its width.
  function fit(layout) {
    for (const [name, part] of Object.entries(layout)) {
      if (/^xaxis\d*$/.test(name) && part.title) part.title.text = wrapped(part.title.text, 26);
      if (/^yaxis\d*$/.test(name) && part.ticktext) part.ticktext = part.ticktext.map((one) => wrapped(one, 16));
      const bar = /^coloraxis\d*$/.test(name) && part.colorbar;
      if (bar && bar.title) {
        bar.title.text = wrapped(bar.title.text, 34);
        layout.margin.t += 14 * ((bar.title.text || "").split("<br>").length - 1);
      }
    }
  }

  async function draw(box) {
    const figure = JSON.parse(document.getElementById(box.dataset.figure).textContent);
    if (box.clientWidth < 480) fit(figure.layout);
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

  // Opens whatever an element is folded into.
  rim.unfold = (element) => {
    for (let folded = element.closest("details"); folded; folded = folded.parentElement.closest("details")) folded.open = true;
  };

  // The contents mark the part that is being read: the last one that has reached the top, at the page's end the last one.
  const parts = [...document.querySelectorAll("nav a")]
    .map((link) => [link, document.getElementById(link.hash.slice(1))])
    .filter(([, part]) => part);
  function mark() {
    const end = window.scrollY > 0 && window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 2;
    const passed = parts.filter(([, part]) => end || part.getBoundingClientRect().top <= 100);
    const [current] = passed.at(-1) || parts[0];
    if (current.hasAttribute("aria-current")) return;
    for (const [link] of parts) link.removeAttribute("aria-current");
    current.setAttribute("aria-current", "true");
    const box = current.closest("nav");
    if (box.scrollHeight > box.clientHeight) box.scrollTop = current.offsetTop - box.clientHeight / 2;
  }
  window.addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true });
  mark();

  const unfolded = new Set(document.querySelectorAll("main details[open]")); // before the reader opens any

  // A link into a folded part unfolds it.
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    rim.unfold(target);
    const own = target.querySelector(":scope > details.inside"); // a section with its figures folded away
    if (own) own.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", unfold);
  unfold();

  // While the audit runs the page grows; who reads a head, or has unfolded a part, is not disturbed.
  if (document.body.dataset.unfinished) {
    setInterval(() => {
      const panel = document.getElementById("panel");
      const opened = [...document.querySelectorAll("main details[open]")].some((one) => !unfolded.has(one));
      if ((!panel || panel.hidden) && !opened) location.reload();
    }, 15_000);
  }

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
