// The panel shows one head or neuron: its row in every table and, for a head, what it looks at. Its name stands in the address.
"use strict";
(() => {
  const panel = document.getElementById("panel");
  if (!panel) return;
  const data = JSON.parse(document.getElementById("linked").textContent);
  const part = (name) => document.getElementById(`panel-${name}`);
  const kinds = { heads: /^L\d+H\d+$/, neurons: /^L\d+(E\d+)?N\d+$/ };
  const chats = (data.heads && data.heads.chats) || [];
  const state = { request: null, from: null };
  const { element } = rim;

  const kindOf = (name) => Object.keys(kinds).find((kind) => kinds[kind].test(name));
  const known = (kind, name) => Boolean(data[kind]) && ((data[kind].heads || []).includes(name) || data[kind].tables.some((table) => name in table.rows));

  // ---- facts ----
  function fact(table, name) {
    const row = table.rows[name];
    const title = element("h3", {}, element("a", { href: `#${table.section}`, text: table.title }));
    const block = (told) => element("section", { class: "block" }, title, told);
    if (!row) return block(element("p", { class: "quiet", text: (table.missing || {})[name] || "not measured" }));
    if (table.many) return block(grid(table.columns, row));
    const list = element("dl", { class: "fact" });
    row.forEach((cell, i) => list.append(element("div", {}, element("dt", { text: table.columns[i] }), element("dd", { text: cell }))));
    return block(list);
  }

  function grid(columns, rows) {
    const cells = (tag, texts) => element("tr", {}, ...texts.map((text) => element(tag, { text })));
    return element("table", {}, element("thead", {}, cells("th", columns)), element("tbody", {}, ...rows.map((row) => cells("td", row))));
  }

  // ---- tokens ----
  function weightsOf(chat) {
    chat.shares ||= new Uint16Array(Uint8Array.from(atob(chat.weights), (one) => one.charCodeAt(0)).buffer);
    return chat.shares;
  }

  function tokenView(chat, name) {
    const row = (chat.heads || data.heads.heads).indexOf(name), n = chat.tokens.length;
    const view = element("section", { class: "view" });
    view.append(element("h4", { text: chat.note ? `${chat.thinking}, answer ${chat.note}` : chat.thinking }));
    if (row < 0) return view;
    const shares = weightsOf(chat).subarray(row * n, (row + 1) * n);
    const most = shares.indexOf(Math.max(...shares)), top = shares[most] || 1;
    const percent = (share) => `${(share / 655.35).toFixed(2)} % of attention`;
    const line = element("p", { class: "tokens" });
    chat.tokens.forEach((text, i) => {
      const token = element("span", { class: `token segment-${chat.segments[i]}`, title: `${chat.segments[i]}: ${percent(shares[i])}`, text: text.replaceAll("\n", "↵") });
      token.style.setProperty("--shade", (shares[i] / top).toFixed(3));
      line.append(token);
      if (text.endsWith("\n")) line.append(element("wbr"));
    });
    view.append(element("p", { class: "quiet", text: `${n} tokens; most: ${percent(shares[most])} on one token (${chat.segments[most]})` }), line);
    return view;
  }

  function requests() {
    return [...new Set(chats.map((chat) => chat.request))];
  }

  function fillTokens() {
    const views = chats.filter((chat) => chat.request === state.request).map((chat) => tokenView(chat, rim.selected));
    part("views").replaceChildren(...views);
  }

  function chooseRequest(request) {
    state.request = request;
    part("request").value = requests().indexOf(request);
    fillTokens();
    document.dispatchEvent(new CustomEvent("request", { detail: request }));
  }

  function step(by) {
    const all = requests();
    chooseRequest(all[(all.indexOf(state.request) + by + all.length) % all.length]);
  }

  function listRequests() {
    part("request").replaceChildren(...requests().map((request, i) => element("option", { value: i, text: request.replace(/\s+/g, " ").slice(0, 90) })));
  }

  // ---- selection ----
  function show(name, { from = null, enter = false } = {}) {
    const kind = kindOf(name);
    rim.selected = name;
    state.from = from || state.from;
    part("title").textContent = `${kind === "heads" ? "Head" : "Neuron"} ${name}`;
    const found = known(kind, name);
    const tables = found ? data[kind].tables.map((table) => fact(table, name)) : [element("p", { text: `There is no ${name} on this page.` })];
    part("facts").replaceChildren(...tables);
    const hasTokens = kind === "heads" && found && chats.length > 0;
    part("tokens").hidden = !hasTokens;
    panel.hidden = false;
    document.body.style.paddingBottom = `${panel.offsetHeight}px`;
    if (hasTokens) chooseRequest(state.request ?? chats[0].request);
    document.dispatchEvent(new CustomEvent("unit", { detail: { name, kind, found } }));
    document.getElementById("spoken").textContent = `${part("title").textContent} is shown in the panel.`;
    if (enter) part("title").focus();
    if (from) keepInView(from, name);
  }

  // Scrolls until the map stands above the panel, as far as its chosen cell stays in the window.
  function keepInView(box, name) {
    const cell = rim.cellOf(box, name);
    const hidden = box.getBoundingClientRect().bottom - (window.innerHeight - panel.offsetHeight);
    if (cell && hidden > 0) window.scrollBy({ top: Math.min(hidden, cell.top - 40) });
  }

  function close() {
    panel.hidden = true;
    rim.selected = null;
    document.body.style.paddingBottom = "";
    if (kindOf(location.hash.slice(1))) history.replaceState(null, "", location.pathname + location.search);
    document.dispatchEvent(new CustomEvent("unit", { detail: {} }));
    if (state.from) state.from.focus({ preventScroll: true });
    state.from = null;
  }

  // The first selection is a step in the browser's history, later ones replace it: "back" leaves the panel at once.
  rim.select = (name, how = {}) => {
    const open = kindOf(location.hash.slice(1));
    history[open ? "replaceState" : "pushState"](null, "", `#${name}`);
    show(name, how);
  };
  rim.request = () => state.request;
  // A reply lists its heads in an order of its own, which its chats keep: the page's own list is ranked.
  rim.addChats = ({ chats: added, heads }) => {
    for (const chat of added) {
      chat.heads = heads;
      const old = chats.findIndex((one) => one.request === chat.request && one.thinking === chat.thinking);
      old < 0 ? chats.push(chat) : chats.splice(old, 1, chat);
    }
    listRequests();
    chooseRequest(added[0].request);
    panel.scrollTo({ top: 0 });
  };

  function fromAddress() {
    const name = decodeURIComponent(location.hash.slice(1));
    if (kindOf(name)) show(name);
    else if (!location.hash && !panel.hidden) close();
  }

  listRequests();
  part("close").addEventListener("click", close);
  part("before").addEventListener("click", () => step(-1));
  part("after").addEventListener("click", () => step(1));
  part("request").addEventListener("change", (event) => chooseRequest(requests()[event.target.value]));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden) close();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.unit");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    rim.select(link.hash.slice(1));
    state.from = link;
  });
  window.addEventListener("hashchange", fromAddress);
  window.addEventListener("popstate", fromAddress);
  fromAddress();
  const first = document.querySelector('.drawing[data-cells="heads"]');
  if (first && kindOf(rim.selected) === "heads") {
    first.addEventListener("drawn", () => rim.selected && keepInView(first, rim.selected), { once: true });
    rim.unfold(first);
    first.closest("figure").scrollIntoView();
  }
})();
