
"use strict";
// The ledger of all rows: choose a trait, filter, sort. Data reaches the page through textContent only.
(() => {
  const source = document.getElementById("ledger-data");
  const table = document.getElementById("ledger");
  if (!source || !table) return;

  const data = JSON.parse(source.textContent);
  const page = 50;
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const keys = headers.map((cell) => cell.dataset.key);
  const choice = document.getElementById("ledger-trait");
  const filter = document.getElementById("ledger-filter");
  const status = document.getElementById("ledger-status");
  const more = document.getElementById("ledger-more");
  const rowNumbers = data.id.map((_, i) => i);
  const haystack = rowNumbers.map((i) => `${data.line[i]} ${data.id[i]} ${data.excerpt[i]}`.toLowerCase());
  const collator = new Intl.Collator(undefined, { numeric: true });
  const numeric = new Set(["line", "n_tokens", "weight", "llr", "z"]);
  const state = { key: "z", descending: true, shown: page };

  const chosen = () => (choice.value === "" ? null : Number(choice.value));

  const value = (key, i) => {
    const trait = chosen();
    if (key === "llr" || key === "z") return trait === null ? data.top[key][i] : data[key][trait][i];
    if (key === "pole" && trait !== null) return data.traits[trait][data.z[trait][i] < 0 ? 1 : 0];
    return data[key][i];
  };

  // Across different traits a sign says nothing, so there the size is what is sorted.
  const rank = (key, i) => {
    const v = value(key, i);
    return v !== null && chosen() === null && (key === "llr" || key === "z") ? Math.abs(v) : v;
  };

  const compare = (a, b) => {
    const [u, v] = [rank(state.key, a), rank(state.key, b)];
    if (u === null || v === null) return (u === null) - (v === null) || a - b;
    const order = numeric.has(state.key) ? u - v : collator.compare(u, v);
    return (state.descending ? -order : order) || a - b;
  };

  const twoDecimals = (v, plus) => {
    if (v === null) return "—";
    const size = Math.abs(v).toFixed(2);
    return (v < 0 ? "−" : v > 0 && plus ? "+" : "") + size;
  };

  const show = (key, i) => {
    const v = value(key, i);
    if (key === "llr" || key === "z") return twoDecimals(v, true);
    if (key === "weight") return twoDecimals(v, false);
    if (key === "line" && v === 0) return "—";
    return v === "" ? "—" : String(v);
  };

  const rowOf = (i) => {
    const row = document.createElement("tr");
    for (const key of keys) {
      const cell = row.insertCell();
      cell.textContent = show(key, i);
      if (numeric.has(key)) cell.className = "num";
      if (key === "id" || key === "excerpt") cell.className = key;
      if (key === "excerpt") cell.dir = "auto";
    }
    return row;
  };

  const update = () => {
    const words = filter.value.trim().toLowerCase();
    const found = rowNumbers.filter((i) => haystack[i].includes(words)).sort(compare);
    const visible = found.slice(0, state.shown);
    body.replaceChildren(...visible.map(rowOf));
    headers.forEach((cell) => {
      if (cell.dataset.key === state.key) cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    const count = (n) => n.toLocaleString("en");
    status.textContent =
      `${count(visible.length)} of ${count(found.length)} rows shown` +
      (found.length < rowNumbers.length ? ` (${count(rowNumbers.length)} in all)` : "") + ".";
    more.hidden = visible.length === found.length;
  };

  headers.forEach((cell) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    button.addEventListener("click", () => {
      const key = cell.dataset.key;
      state.descending = state.key === key ? !state.descending : numeric.has(key) && key !== "line";
      state.key = key;
      update();
    });
    cell.replaceChildren(button);
  });
  const restart = () => { state.shown = page; update(); };
  choice.addEventListener("change", restart);
  filter.addEventListener("input", restart);
  more.addEventListener("click", (event) => {
    const kind = event.target.dataset.more;
    if (!kind) return;
    state.shown = kind === "all" ? Infinity : state.shown + page;
    update();
  });
  document.getElementById("ledger-controls").hidden = false;
  update();
})();
