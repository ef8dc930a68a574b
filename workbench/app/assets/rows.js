/* A table whose rows can be chosen by mouse, Enter or arrow keys. Each table component calls workbenchRows once.
 *
 * A row has its key as JSON in data-key. Choosing it leaves the key in window.workbenchChosenKey for listeners in the
 * browser, which get no data from Gradio, and sends {key} to those in Python. */
window.workbenchRows = (element, trigger, watch, sortEvent) => {
  const rowsOf = () => [...element.querySelectorAll("[data-key]")];
  const exact = (cell) => {
    const text = cell.matches(".wbu-none") ? "" : cell.innerText.trim();
    return cell.dataset.value ?? (cell.tagName === "TH" ? text.replace(/\s+/g, " ") : text);
  };
  let paused; // several keys in a row choose the last row only
  const choose = (row, pause = 0) => {
    clearTimeout(paused);
    const select = () => {
      window.workbenchChosenKey = JSON.parse(row.dataset.key);
      trigger("select", { key: window.workbenchChosenKey });
    };
    if (pause) paused = setTimeout(select, pause); else select();
  };

  element.addEventListener("click", (event) => {
    const heading = event.target.closest("[data-sort]");
    if (heading) {
      trigger(sortEvent, { field: heading.dataset.sort });
      return;
    }
    const save = event.target.closest("[data-csv]");
    if (save) {
      const caption = save.parentElement.firstChild.textContent.split(":")[0];
      const lines = [...save.closest(".wbu-scroll").querySelector("table").rows].map((line) => [...line.cells].map(exact));
      workbenchFigures.saveRows(caption, lines);
      return;
    }
    const row = event.target.closest("[data-key]");
    if (row) choose(row);
    else event.target.closest(".wbu-cut")?.classList.toggle("wbu-whole");
  });

  element.addEventListener("keydown", (event) => {
    if (event.target.matches(".wbu-cut") && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      event.target.classList.toggle("wbu-whole");
      return;
    }
    const row = event.target.closest("[data-key]");
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = rowsOf();
    const index = rows.indexOf(row);
    const goal = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(row);
    } else if (goal !== undefined) {
      event.preventDefault();
      const next = rows[Math.max(0, Math.min(rows.length - 1, goal))];
      rows.forEach((other) => { other.tabIndex = other === next ? 0 : -1; });
      next.focus();
      if (next !== row && element.querySelector("table[data-follow]")) choose(next, 120);
    }
  });

  /* Scroll to the chosen row, which an address or Python may have chosen. */
  const reveal = () => {
    const row = element.querySelector('[aria-selected="true"]');
    const box = row?.closest(".wbu-scroll");
    if (!box || box.scrollHeight <= box.clientHeight) return;
    const head = box.querySelector("thead")?.offsetHeight || 0;
    const [top, bottom] = [row.offsetTop - head, row.offsetTop + row.offsetHeight];
    if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = top - row.offsetHeight;
  };
  /* Mark clipped texts. In rows that cannot be chosen, a click expands them. */
  const cut = () => {
    for (const text of element.querySelectorAll(".wbu-clip:not(.wbu-whole)")) {
      const isCut = text.scrollHeight > text.clientHeight + 1;
      text.classList.toggle("wbu-cut", isCut);
      if (!isCut || text.closest("[data-key]")) continue;
      text.tabIndex = 0;
      text.title = "Click to expand or collapse";
    }
  };
  const drawn = () => requestAnimationFrame(() => { cut(); reveal(); });
  watch("value", drawn);
  drawn();
  new ResizeObserver(() => requestAnimationFrame(cut)).observe(element); // the table of a hidden tab has no size yet
};
