// What needs the model, where `rim-lens serve` shows the page: answers with heads ablated, attention in a new prompt.
"use strict";
(() => {
  const live = document.getElementById("panel-live");
  const served = location.protocol === "http:" && /^\/[\w-]{32,}\/$/.test(location.pathname);
  if (!live || !served) return;
  const part = (name) => document.getElementById(`live-${name}`);
  const { element } = rim;
  const ablated = new Set();

  async function ask(path, body) {
    const sent = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const reply = await fetch(`api/${path}`, sent);
    const answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error);
    return answer;
  }

  async function busy(what, work) {
    const buttons = [...live.querySelectorAll("button")];
    buttons.forEach((one) => (one.disabled = true));
    part("state").textContent = what;
    try {
      await work();
      part("state").textContent = "";
    } catch (error) {
      part("state").textContent = error.message;
    } finally {
      buttons.forEach((one) => (one.disabled = false));
    }
  }

  function listAblated() {
    const chips = [...ablated].map((name) => {
      const remove = () => { ablated.delete(name); listAblated(); };
      return element("button", { type: "button", class: "chip", "aria-label": `Do not ablate ${name}`, text: `${name} ×`, on: { click: remove } });
    });
    part("heads").replaceChildren(...(chips.length ? chips : [element("span", { class: "quiet", text: "none yet" })]));
  }

  function answerView(title, answer) {
    const view = element("section", { class: "view" }, element("h4", { text: title }));
    view.append(element("p", { class: "score", text: `refusal score ${answer.score.toFixed(2)} nats, ${answer.label}` }));
    if (answer.cot) view.append(element("p", { class: "said quiet", text: answer.cot }));
    view.append(element("p", { class: "said", text: answer.response || "(nothing)" }));
    return view;
  }

  function answer() {
    const request = rim.request(), heads = [...ablated];
    return busy("The model is answering…", async () => {
      const found = await ask("answer", { request, thinking: part("thinking").value, heads });
      const views = [answerView("All heads", found.before)];
      if (found.after) views.push(answerView(`Without ${heads.join(", ")}`, found.after));
      part("answers").replaceChildren(...views);
    });
  }

  function read() {
    const request = part("prompt").value.trim();
    if (!request) return null;
    return busy("Reading the prompt…", async () => rim.addChats(await ask("tokens", { request })));
  }

  function start(about) {
    part("thinking").replaceChildren(...about.modes.map((mode) => element("option", { value: mode, text: mode })));
    part("about").textContent = `${about.model} is loaded and answers here.`;
    part("add").addEventListener("click", () => { ablated.add(rim.selected); listAblated(); });
    part("answer").addEventListener("click", answer);
    part("read").addEventListener("submit", (event) => { event.preventDefault(); read(); });
    const follow = ({ detail }) => {
      live.hidden = !(detail.kind === "heads" && detail.found);
      part("add").textContent = `Ablate ${detail.name || ""}`;
    };
    document.addEventListener("unit", follow);
    document.addEventListener("request", () => part("answers").replaceChildren());
    listAblated();
    const alive = `${about.model} is loaded and answers here: choose a head in any map.`;
    document.getElementById("summary").append(element("p", { class: "scope", role: "status", text: alive }));
    document.documentElement.dataset.served = "yes";
    if (rim.selected) follow({ detail: { kind: /H/.test(rim.selected) && "heads", found: true, name: rim.selected } });
  }

  ask("about").then(start, () => {}); // without an answer the page stays what it is from disk
})();
