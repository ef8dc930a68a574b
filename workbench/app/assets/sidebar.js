/* The list of runs: a click on a name shows that run, a tick shows it beside the others.
 *
 * Runs are in the address: `run` is the one that single views show, `with` has the further ticked ones. A name that is
 * ticked becomes the run and the ticks stay; another name replaces them all. */
window.workbenchSidebar = (() => {
  let [run, further] = [null, []];
  const items = () => [...document.querySelectorAll("#app-runs li[data-run]")];
  const paint = () => {
    for (const item of items()) {
      const name = item.dataset.run;
      item.querySelector("input").checked = name === run || further.includes(name);
      item.querySelector("button").ariaCurrent = name === run ? "true" : "false";
    }
    for (const line of document.querySelectorAll("#runs-all tr[data-run]")) { // the table of all runs has the same ticks
      const name = line.dataset.run;
      line.querySelector("input").checked = name === run || further.includes(name);
      line.toggleAttribute("data-current", name === run);
    }
    document.querySelector("#app-runs-toggle")?.style.setProperty("--run", JSON.stringify(run || "no run"));
  };
  const isNarrow = () => matchMedia("(max-width: 900px)").matches;
  const classes = () => document.querySelector("#app-body").classList;
  let choose = () => {};
  const tick = (name, box) => {
    if (box.checked) choose(run || name, [...further, name]);
    else if (name !== run) choose(run, further.filter((each) => each !== name));
    else if (further.length) choose(further[0], further.slice(1));
    else box.checked = true; // one run stays
  };
  const toggle = () => { classes().toggle(isNarrow() ? "app-open" : "app-closed"); };
  return {
    toggle,
    tick,
    paint,
    mark: (name, ticked) => {
      [run, further] = [name, (ticked || "").split(",").filter(Boolean)];
      paint();
    },
    chosen: (address) => { // the chosen run, and the address with the further ticked ones
      const { with: before, ...rest } = address || {};
      return [run, further.length ? { ...rest, with: further.join() } : rest];
    },
    start: (element, trigger, watch) => {
      choose = (next, rest) => {
        [run, further] = [next, rest.filter((name) => name !== next)];
        paint();
        trigger("select");
      };
      element.addEventListener("click", (event) => {
        const button = event.target.closest("li button");
        if (!button) return;
        const name = button.closest("li").dataset.run;
        choose(name, further.includes(name) ? [run, ...further] : name === run ? further : []);
        if (isNarrow()) classes().remove("app-open");
      });
      element.addEventListener("change", (event) => {
        const name = event.target.closest("li[data-run]")?.dataset.run;
        if (name) tick(name, event.target);
      });
      addEventListener("keydown", (event) => {
        if (event.key === "Escape") classes().remove("app-open");
      });
      watch("value", () => requestAnimationFrame(paint));
      paint();
    },
  };
})();
