/* The table of all runs. Rows come as JSON from the hidden component #runs-data; search, sorting, ticks and the panel
 * of one run are the browser's. What changes a run is sent to Python as the key of a `select` event. */
window.workbenchRuns = (() => {
  let data = { columns: [], rows: [], question: null };
  let [sorted, words, withArchived, opened] = ["-started", "", false, null];
  let element = null, send = () => {};
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const part = (name) => element.querySelector(`[data-part="${name}"]`);
  const read = () => {
    const text = document.querySelector("#runs-data [data-json]")?.dataset.json;
    if (text) data = JSON.parse(text);
  };
  const key = () => sorted.replace(/^-/, "");
  const compare = (a, b) => {
    const column = data.columns.findIndex((each) => each.key === key());
    const [left, right] = [a.sort[column] ?? null, b.sort[column] ?? null];
    if (left === null || right === null) return (left === null) - (right === null);
    const order = typeof left === "string" ? left.localeCompare(right, undefined, { numeric: true }) : left - right;
    return sorted.startsWith("-") ? -order : order;
  };
  const matching = () => {
    const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
    return data.rows.filter((row) => (withArchived || !row.archived) && parts.every((word) => row.search.includes(word)));
  };
  const field = (label, control) => make("label", {}, make("span", {}, label), control);
  const button = (text, action, attributes = {}) => {
    const node = make("button", { type: "button", ...attributes }, text);
    node.addEventListener("click", (event) => { event.stopPropagation(); action(event); });
    return node;
  };

  const panel = (row) => {
    const report = (action, more = {}) => send({ action, name: row.name, ...more });
    const box = make("div", { class: "runs-panel" });
    if (row.reason) box.append(make("p", { class: "runs-reason" }, row.reason));
    if (!data.read_only) {
      const [name, tags] = [make("input", { value: row.leaf }), make("input", { value: row.tags.join(", ") })];
      const note = make("textarea", { rows: 2 });
      note.value = row.note;
      const rename = button("Rename", () => report("rename", { value: name.value }), { disabled: row.alive });
      const save = button("Save", () => report("label", { tags: tags.value, note: note.value }));
      box.append(make("div", { class: "runs-fields" },
        make("div", {}, field("Name", name), rename),
        make("div", {}, field("Tags, with commas", tags), field("Note", note), save)));
    }
    const question = data.question?.name === row.name ? data.question.text : null;
    const actions = make("div", { class: "runs-actions" },
      button("Open in Training", () => report("open")),
      button("Clone into New run", () => report("clone")));
    if (!data.read_only) {
      actions.append(button(row.archived ? "Unarchive" : "Archive", () => report(row.archived ? "unarchive" : "archive")));
      if (question === null) {
        actions.append(button("Delete …", () => report("ask"),
          { disabled: row.alive, title: row.alive ? "Stop the run first" : null }));
      }
    }
    box.append(actions);
    if (question !== null) {
      box.append(make("div", { class: "runs-question", role: "alertdialog", "aria-label": "Delete the run" },
        make("span", {}, question), button("Delete", () => report("delete"), { class: "runs-danger" }),
        button("Keep", () => report("keep"))));
    }
    return make("tr", { class: "runs-opened" }, make("td", { colspan: data.columns.length + 2 }, box));
  };

  const cell = (column, row, index) => {
    const text = row.cells[index];
    if (column.key === "name") {
      const link = make("a", { href: `?run=${encodeURIComponent(row.name)}&tab=training`, title: row.name }, text);
      return make("th", { scope: "row" }, link);
    }
    if (column.key === "state") {
      return make("td", {}, make("span", { class: `app-is-${text}`, title: row.reason || null }, text),
        row.archived ? make("small", {}, " archived") : null);
    }
    if (column.key === "tags") return make("td", {}, ...row.tags.map((tag) => make("span", { class: "runs-tag" }, tag)));
    return make("td", { class: column.number ? "runs-number" : column.key === "note" ? "runs-note" : null }, text);
  };

  const drawRow = (row) => {
    const tick = make("input", { type: "checkbox", "aria-label": `Show ${row.name}` });
    const more = button("⋯", () => { opened = opened === row.name ? null : row.name; draw(); }, {
      "aria-label": `Change ${row.name}`, "aria-expanded": String(opened === row.name), class: "runs-more",
    });
    const line = make("tr", { "data-run": row.name, class: row.archived ? "runs-archived" : null },
      make("td", {}, tick), ...data.columns.map((column, index) => cell(column, row, index)), make("td", {}, more));
    return opened === row.name ? [line, panel(row)] : [line];
  };

  const heading = (column) => {
    const direction = key() !== column.key ? "none" : sorted.startsWith("-") ? "descending" : "ascending";
    const mark = { none: "", ascending: " ↑", descending: " ↓" }[direction];
    const sort = button(column.title + mark, () => {
      const first = column.number ? `-${column.key}` : column.key; // numbers: the largest first
      sorted = sorted === first ? (column.number ? column.key : `-${column.key}`) : first;
      draw();
      part("head").querySelector(`[data-key="${column.key}"]`)?.focus();
    }, { title: column.help || null, "data-key": column.key });
    return make("th", { scope: "col", "aria-sort": direction, class: column.number ? "runs-number" : null }, sort);
  };

  const draw = () => {
    const listed = matching().sort(compare);
    const archived = data.rows.filter((row) => row.archived).length;
    part("head").replaceChildren(make("tr", {}, make("th", {}, make("span", { class: "runs-hidden" }, "shown")),
      ...data.columns.map(heading), make("th", {}, make("span", { class: "runs-hidden" }, "actions"))));
    part("body").replaceChildren(...listed.flatMap(drawRow));
    part("count").textContent = listed.length === data.rows.length
      ? `${listed.length} ${listed.length === 1 ? "run" : "runs"}` : `${listed.length} of ${data.rows.length} runs`;
    part("archived").closest("label").hidden = archived === 0;
    part("archived-count").textContent = archived;
    element.classList.toggle("runs-empty", data.rows.length === 0);
    window.workbenchSidebar.paint();
  };
  const redraw = () => { // keeps the focus and what is typed in an open panel
    const active = document.activeElement;
    if (element.contains(active) && active.matches(".runs-panel :is(input, textarea)") && data.question === null) return;
    draw();
  };

  const download = () => {
    const lines = [data.csv, ...matching().sort(compare).map((row) => row.csv)];
    const link = make("a", { download: "runs.csv", href: URL.createObjectURL(new Blob(lines, { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const keys = (event) => {
    const line = event.target.closest("tr[data-run]");
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!line || !step) return;
    const lines = [...part("body").querySelectorAll("tr[data-run]")];
    const next = lines[lines.indexOf(line) + step];
    if (!next) return;
    event.preventDefault();
    const same = event.target.matches("input") ? "input" : event.target.matches(".runs-more") ? ".runs-more" : "a";
    next.querySelector(same).focus();
  };

  return {
    start: (host, trigger) => {
      element = host.querySelector(".runs-table");
      send = (action) => trigger("select", { key: action });
      read();
      part("search").addEventListener("input", (event) => { words = event.target.value; draw(); });
      part("archived").addEventListener("change", (event) => { withArchived = event.target.checked; draw(); });
      part("csv").addEventListener("click", download);
      element.addEventListener("keydown", keys);
      element.addEventListener("change", (event) => {
        const line = event.target.closest("tr[data-run]");
        if (line) window.workbenchSidebar.tick(line.dataset.run, event.target);
      });
      part("body").addEventListener("click", (event) => {
        const line = event.target.closest("tr[data-run]");
        if (!line || event.target.closest("input, button") || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault(); // the link opens in this page
        send({ action: "open", name: line.dataset.run });
      });
      draw();
    },
    update: () => { read(); if (element) redraw(); },
  };
})();

/* Cards of the start page: a button's data-card is the key of a `select` event. */
window.workbenchCards = (element, trigger) => element.addEventListener("click", (event) => {
  const card = event.target.closest("button[data-card]");
  if (card) trigger("select", { key: { action: card.dataset.card } });
});
