/* A table of rows that can be chosen: by mouse, by Enter, or with the arrow keys. workbenchRows runs once per table, by its component.
 *
 * A row carries its key as JSON in data-key; choosing it sends {key} to Python. The chosen row is drawn by Python. */
window.workbenchRows = (element, trigger, watch) => {
  const rowsOf = () => [...element.querySelectorAll("tr[data-key]")];
  const choose = (row) => trigger("select", { key: JSON.parse(row.dataset.key) });

  element.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-key]");
    if (row) choose(row);
    else event.target.closest(".wbu-cut")?.classList.toggle("wbu-whole");
  });

  element.addEventListener("keydown", (event) => {
    if (event.target.matches(".wbu-cut") && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      event.target.classList.toggle("wbu-whole");
      return;
    }
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
  /* Texts that are longer than their lines. Those of rows that open nothing are opened where they stand. */
  const cut = () => {
    for (const text of element.querySelectorAll(".wbu-clip:not(.wbu-whole)")) {
      const isCut = text.scrollHeight > text.clientHeight + 1;
      text.classList.toggle("wbu-cut", isCut);
      if (!isCut || text.closest("tr[data-key]")) continue;
      text.tabIndex = 0;
      text.title = "Choose it to read all of it, or its beginning again";
    }
  };
  const drawn = () => requestAnimationFrame(() => { cut(); reveal(); });
  watch("value", drawn);
  drawn();
  new ResizeObserver(() => requestAnimationFrame(cut)).observe(element); // a closed tab's table has no size yet
};
