// Labels that a reader gives anew become a file of rows that judge_report takes; nothing leaves this page by itself.
"use strict";
for (const box of document.querySelectorAll(".answers")) {
  const button = box.querySelector(".save button"), state = box.querySelector(".save [role=status]");
  const read = new Set(); // rows whose label a reader has chosen
  const text = (row, part) => row.querySelector(part).textContent;

  box.addEventListener("change", (event) => {
    const row = event.target.closest("tr");
    event.target.value ? read.add(row) : read.delete(row);
    button.disabled = read.size === 0;
    state.textContent = `${read.size} labelled`;
  });

  button.addEventListener("click", () => {
    const rows = [...read].map((row) => {
      const [label, judged] = [row.querySelector("select").value, text(row, ".judged")];
      return { request: text(row, ".asked"), response: text(row, ".said-answer"), label, judged };
    });
    const file = new Blob(rows.map((row) => `${JSON.stringify(row)}\n`), { type: "application/jsonl" });
    const link = rim.element("a", { href: URL.createObjectURL(file), download: "labels.jsonl" });
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
