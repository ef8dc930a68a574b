/* One answer: the up and down keys open its neighbor in the list, and the chosen color quantity persists. */
let movedByKey = false; // then the next answer takes the focus
let color = null;

element.addEventListener("workbench:rollout", (event) => {
  event.preventDefault();
  movedByKey = true;
  trigger("turn", { direction: event.detail.direction });
});

const address = () => JSON.parse(element.querySelector("[data-answer]")?.dataset.answer || "{}");
element.addEventListener("workbench:pin", (event) => window.workbenchApp?.pin(event.detail.index, address()));

element.addEventListener("click", (event) => {
  const chip = event.target.closest(".wb-chip[data-by]");
  if (chip && event.isTrusted) color = chip.dataset.by;
});

watch("value", () => {
  window.workbenchApp?.answered(address());
  const chip = color && element.querySelector(`.wb-chip[data-by="${color}"][aria-pressed="false"]:not(:disabled)`);
  if (chip) chip.click();
  const pinned = element.querySelector('.wb-t[aria-pressed="true"]');
  if (movedByKey) pinned?.focus({ preventScroll: true });
  // a token that matches the filters may be far down; a user who moves through the list by keys stays in the list
  const jumps = element.querySelector("[data-jump]") && !document.activeElement?.matches("tr:focus-visible");
  if (movedByKey || jumps) pinned?.scrollIntoView({ block: "nearest" });
  movedByKey = false;
});
