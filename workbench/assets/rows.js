/* A table of rows that can be chosen: by mouse, by Enter, or with the arrow keys. workbenchRows runs once per table, by its component.
 *
 * A row carries its key as JSON in data-key; choosing it sends {key} to Python. The chosen row is drawn by Python. */
window.workbenchRows = (element, trigger, watch) => {
  const rowsOf = () => [...element.querySelectorAll("tr[data-key]")];
  const choose = (row) => trigger("select", { key: JSON.parse(row.dataset.key) });

  element.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-key]");
    if (row) choose(row);
  });

  element.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr[data-key]");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = rowsOf();
    const place = rows.indexOf(row);
    const goal = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(row);
    } else if (goal !== undefined) {
      event.preventDefault();
      const next = rows[Math.max(0, Math.min(rows.length - 1, goal))];
      rows.forEach((one) => { one.tabIndex = one === next ? 0 : -1; });
      next.focus();
      if (next !== row && element.querySelector("table[data-follow]")) choose(next);
    }
  });

  /* The chosen row may lie further down than the table shows: an address or Python chose it. */
  const reveal = () => {
    const row = element.querySelector('tr[aria-selected="true"]');
    const box = row?.closest(".wbu-scroll");
    if (!box || box.scrollHeight <= box.clientHeight) return;
    const head = box.querySelector("thead")?.offsetHeight || 0;
    const [top, bottom] = [row.offsetTop - head, row.offsetTop + row.offsetHeight];
    if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = top - row.offsetHeight;
  };
  watch("value", () => requestAnimationFrame(reveal));
  requestAnimationFrame(reveal);
};
