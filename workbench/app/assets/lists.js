/* What Gradio's lists lack (6.31), by events that reach the page before Gradio.
 *
 * 1. The Tab key that leaves a list opens it again. Without that event the list stays closed, and the focus moves on.
 * 2. After Escape, a click opens a list only if its box has no focus.
 * 3. The run picker takes any text as a run. Here typing replaces the name and filters the list, Enter takes a run of
 *    the list alone, and whoever leaves without choosing keeps the run. */
(() => {
  const LISTS = '#app-tabs input[role="combobox"], #app-header input[role="combobox"]';
  const PICKER = "#app-run input";
  const on = (kind, selector, listener) =>
    addEventListener(kind, (event) => { if (event.target.matches?.(selector)) listener(event, event.target); }, true);
  let name = ""; // text of the picker before the user typed
  let isChosen = false;

  on("keydown", LISTS, (event, box) => {
    if (event.key === "Tab") event.stopPropagation();
    if (event.key !== "Enter" || !box.matches(PICKER)) return;
    isChosen = box.hasAttribute("aria-activedescendant");
    if (!isChosen) event.stopPropagation();
  });
  on("pointerdown", LISTS, (event, box) => {
    if (box === document.activeElement && box.ariaExpanded === "false") box.blur(); // the press focuses it again
  });
  on("focus", PICKER, (event, box) => {
    [name, isChosen] = [box.value, false];
    requestAnimationFrame(() => box.select()); // after the press, which sets the caret
  });
  on("pointerover", PICKER, (event, box) => { box.title = box.value; }); // a long name is cut
  on("mousedown", "#app-run [role=listbox] *", () => { isChosen = true; });
  on("blur", PICKER, (event, box) => {
    if (isChosen || box.value === name) return;
    box.value = name;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  });
})();
