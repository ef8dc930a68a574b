// The page's own few lines: the theme, and what the address says. Runs before anything is drawn.

// Gradio's clock of its first loading sign never stops (6.31): a frame is drawn sixty times a second on a page that rests,
// which takes a tenth of a core. Its clocks go twice a second here.
const workbenchFrame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) =>
  new Error().stack.includes("/statustracker-") ? setTimeout(() => workbenchFrame(draw), 500) : workbenchFrame(draw);

window.workbenchApp = (() => {
  const asked = location.search; // the page may rewrite it before the server has answered
  let forced = new URLSearchParams(asked).get("__theme"); // a link may choose the theme
  let refreshes = 0;
  let isOpen = false; // the address is not touched before the server has read it
  let page = null; // run, tab and address that were shown last
  let pinned = null; // parts of the address for the token that the reader looks at; the server is not told of it
  let keys = 0, rested = ""; // key presses in a form, and how many there were when the reader last paused
  const stored = () => { try { return localStorage.getItem("workbench-theme"); } catch { return null; } };
  const isDark = () => {
    const wanted = forced || stored();
    return wanted ? wanted === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const paint = (dark) => {
    document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    return dark ? "dark" : "light";
  };
  const write = () => {
    if (!page) return;
    const query = new URLSearchParams();
    if (page.run) query.set("run", page.run);
    query.set("tab", page.tab);
    for (const [key, value] of Object.entries({ ...page.address, ...(page.tab === "tokens" ? pinned : null) }))
      if (value !== null && value !== undefined && value !== "") query.set(key, value);
    if (forced) query.set("__theme", forced);
    history.replaceState(null, "", `${location.pathname}?${query}`);
  };
  // what the server knows of the run, while Gradio is still loading: it stands until the page itself has it
  const firstPaint = async () => {
    const config = window.gradio_config || {};
    if (config.auth_required) return;
    const asking = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ data: [asked] }) };
    const answer = await fetch(`${config.root || ""}${config.api_prefix || "/gradio_api"}/run/first_paint`, asking);
    const html = answer.ok ? (await answer.json()).data[0] : "";
    const isThere = () => document.querySelector("#monitor-status :is(h2, p)") || document.querySelector("#app-trouble p");
    if (!html || isThere()) return;
    const first = document.createElement("div");
    first.id = "app-first";
    first.className = "gradio-container";
    first.innerHTML = html;
    if (!document.body) await new Promise((done) => addEventListener("DOMContentLoaded", done));
    paint(isDark());
    document.body.append(first);
    const ended = new MutationObserver(() => { if (isThere()) { ended.disconnect(); first.remove(); } });
    ended.observe(document.body, { childList: true, subtree: true });
    setTimeout(() => { ended.disconnect(); first.remove(); }, 15000);
  };
  firstPaint().catch(() => {});
  // resolves when the reader has paused; only the last key press of several changes what it returns. Two events of one
  // form, asked at once, may be answered in either order, so the server is asked once, of the form as it is then
  const typed = async () => {
    const mine = ++keys;
    await new Promise((done) => setTimeout(done, 150));
    return mine === keys ? (rested = String(mine)) : rested;
  };
  document.addEventListener("input", async ({ target }) => {
    if (!target.closest("#launch")) return;
    const heard = document.querySelector("#launch-typed textarea, #launch-typed input");
    const said = await typed();
    if (heard.value === said) return;
    heard.value = said;
    heard.dispatchEvent(new Event("input", { bubbles: true }));
  });
  // Gradio's lists (6.31) are opened again by the Tab key that left them: it is kept from them, and moves on all the same
  addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.matches?.('#app-tabs input[role="combobox"], #app-header input[role="combobox"]')) event.stopPropagation();
  }, true);
  return {
    start: () => [asked, paint(isDark())],
    toggle: () => {
      const theme = paint(!document.body.classList.contains("dark"));
      forced = null;
      try { localStorage.setItem("workbench-theme", theme); } catch { /* a browser that stores nothing */ }
      return theme;
    },
    open: () => { isOpen = true; },
    refresh: () => { refreshes += 1; },
    pin: (index, answer) => { // the address names the token that the reader looks at, and its answer
      pinned = { ...answer, token: index };
      write();
    },
    answered: (answer) => { // another answer is open: the token of the last one is not in it
      if (pinned === null || Object.entries(answer).every(([key, value]) => pinned[key] === value)) return;
      pinned = null;
      write();
    },
    typed,
    // the address with a tab's choices in it: those at their defaults are left out, and so is what they make another
    choose: (defaults, forgotten, address, ...chosen) => {
      const next = { ...address };
      for (const name of forgotten) delete next[name];
      Object.entries(defaults).forEach(([name, usual], k) => {
        const text = chosen[k] === true ? "1" : String(chosen[k] || "").trim();
        if (text && text !== usual) next[name] = text; else delete next[name];
      });
      return next;
    },
    run: (chosen) => chosen || new URLSearchParams(location.search).get("run"),
    // writes the address, and wakes the open tab if what it shows has changed
    show: (tabs, run, tab, theme, address, ...wakes) => {
      if (!tab || !isOpen) return wakes;
      const before = page;
      page = { run, tab, address: address || {} };
      if (before && JSON.stringify([run, page.address]) !== JSON.stringify([before.run, before.address])) pinned = null;
      write();
      return tabs.map((name, k) => name === tab ? JSON.stringify([run, theme, address, refreshes]) : wakes[k]);
    },
  };
})();
