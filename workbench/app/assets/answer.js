/* The place of one answer: up and down ask Python for the neighbouring answer, and what the reader chose stays chosen. */
let follows = false; // the reader came by a key, so the next answer takes the focus
let color = null;

element.addEventListener("workbench:rollout", (event) => {
  event.preventDefault();
  follows = true;
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
  if (follows) pinned?.focus({ preventScroll: true });
  // a token that the filters ask for may lie far down; a reader who goes through the list by keys stays there
  const jumps = element.querySelector("[data-jump]") && !document.activeElement?.matches("tr:focus-visible");
  if (follows || jumps) pinned?.scrollIntoView({ block: "nearest" });
  follows = false;
});
