/* What Gradio's lists lack (6.31), by events that reach the page before Gradio.
 *
 * 1. The Tab key that leaves a list opens it again. Without that event the list stays closed, and the focus moves on.
 * 2. After Escape, a click opens a list only if its box has no focus. */
(() => {
  const LISTS = '#app-tabs input[role="combobox"]';
  const on = (kind, listener) =>
    addEventListener(kind, (event) => { if (event.target.matches?.(LISTS)) listener(event, event.target); }, true);

  on("keydown", (event) => { if (event.key === "Tab") event.stopPropagation(); });
  on("pointerdown", (event, box) => {
    if (box === document.activeElement && box.ariaExpanded === "false") box.blur(); // the press focuses it again
  });
})();
