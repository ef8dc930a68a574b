/* Search in all settings of New run. A field stays if every word occurs in its key, label or help.
 *
 * #new-run-changed has the ids of the fields whose values are not their defaults. */
window.workbenchSettings = (element) => {
  const [words, only] = element.querySelectorAll("input");
  const status = element.querySelector("[role=status]");
  const settings = element.closest("#new-run-settings");
  let changed = [];
  const filter = () => {
    const text = document.querySelector("#new-run-changed template")?.dataset.changed;
    if (text) changed = JSON.parse(text);
    const searched = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let [count, total] = [0, 0];
    for (const heading of settings.querySelectorAll(".block.new-run-section")) {
      let left = 0;
      for (const field of heading.nextElementSibling?.querySelectorAll("[id^=new-run-]") ?? []) {
        const key = field.id.replace("new-run-", "").replaceAll("-", ".");
        const all = `${key} ${field.innerText}`.toLowerCase();
        const isChanged = changed.includes(field.id);
        const isLeft = searched.every((word) => all.includes(word)) && (isChanged || !only.checked);
        field.toggleAttribute("data-out", !isLeft);
        field.toggleAttribute("data-changed", isChanged);
        total += 1;
        left += isLeft;
      }
      heading.toggleAttribute("data-out", left === 0);
      heading.nextElementSibling?.toggleAttribute("data-out", left === 0);
      count += left;
    }
    const counted = count === total ? `${total} settings` : `${count} of ${total} settings`;
    if (status.textContent !== counted) status.textContent = counted; // a change of the page starts the filter again
  };
  words.addEventListener("input", filter);
  only.addEventListener("change", filter);
  document.addEventListener("workbench-settings", () => requestAnimationFrame(filter));
  new MutationObserver(filter).observe(settings, { childList: true, subtree: true });
  filter();
};
