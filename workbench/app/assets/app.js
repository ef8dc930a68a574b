// Theme and address of the page. Runs before anything is drawn.

// The timer of Gradio's first loading indicator never stops (6.31): it draws sixty frames a second on an idle page and
// takes 10 % of a core. Here its timers run twice a second.
const workbenchFrame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) =>
  new Error().stack.includes("/statustracker-") ? setTimeout(() => workbenchFrame(draw), 500) : workbenchFrame(draw);

window.workbenchApp = (() => {
  let search = location.search; // the page may rewrite it before the server responds
  let forced = new URLSearchParams(search).get("__theme"); // a link may choose the theme
  let refreshes = 0;
  let isOpen = false; // the address is not changed before the server has read it
  let page = null; // run, tab and address shown last
  let pinned = null; // parameters of the address for the pinned token, which the server does not need
  let keys = 0, paused = ""; // key presses in a form, and their number when the user last paused
  let acts = 0, pushed = 0; // presses of the user, and their number at the newest entry of the browser's history
  // when the server was asked to read an address: that address, the number of presses, and whether one changed the page
  let asked = { search, acts, isOvertaken: false };
  const lastOf = {}; // by place: the view that was open last
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
  // An act of the user that changes run, tab or address adds one entry to the history, whatever number of events it
  // causes; arrow keys, pinned tokens and the page itself replace the newest entry.
  const write = (mayPush = false) => {
    if (!page) return;
    const query = new URLSearchParams();
    if (page.run) query.set("run", page.run);
    query.set("tab", page.tab);
    for (const [key, value] of Object.entries({ ...page.address, ...(page.tab === "answers" ? pinned : null) }))
      if (value !== null && value !== undefined && value !== "") query.set(key, value);
    if (forced) query.set("__theme", forced);
    const url = `${location.pathname}?${query}`;
    if (url === location.pathname + location.search) return;
    if (mayPush && acts > pushed) history.pushState(null, "", url);
    else history.replaceState(null, "", url);
    if (mayPush) pushed = acts;
  };
  const isMove = (event) => event.key?.startsWith("Arrow") && event.target.closest?.("tr[data-key], .wb-t");
  for (const kind of ["pointerdown", "keydown"])
    addEventListener(kind, (event) => { if (event.isTrusted && !event.repeat && !isMove(event)) acts += 1; }, true);
  addEventListener("popstate", () => {
    [search, pinned, pushed] = [location.search, null, acts];
    const box = document.querySelector("#app-back textarea, #app-back input");
    box.value = String(Number(box.value) + 1);
    box.dispatchEvent(new Event("input", { bubbles: true }));
  });
  // shows the run's state while Gradio is loading, until the page itself shows it
  const firstPaint = async () => {
    const config = window.gradio_config || {};
    if (config.auth_required) return;
    const body = JSON.stringify({ data: [search] });
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const response = await fetch(`${config.root || ""}${config.api_prefix || "/gradio_api"}/run/first_paint`, request);
    const html = response.ok ? (await response.json()).data[0] : "";
    const isDrawn = () => document.querySelector("#training-status :is(h2, p), #app-trouble p");
    if (!html || isDrawn()) return;
    const first = document.createElement("div");
    first.id = "app-first";
    first.className = "gradio-container";
    first.innerHTML = html;
    if (!document.body) await new Promise((done) => addEventListener("DOMContentLoaded", done));
    paint(isDark());
    document.body.append(first);
    const observer = new MutationObserver(() => { if (isDrawn()) { observer.disconnect(); first.remove(); } });
    observer.observe(document.body, { childList: true, subtree: true });
    setTimeout(() => { observer.disconnect(); first.remove(); }, 15000);
  };
  firstPaint().catch(() => {});
  // resolves after a pause; only the last of several key presses changes the result. The server may respond to two
  // concurrent events of a form in either order, so it gets one event, with the form as it is after the pause
  const typed = async () => {
    const press = ++keys;
    await new Promise((done) => setTimeout(done, 150));
    return press === keys ? (paused = String(press)) : paused;
  };
  document.addEventListener("input", async ({ target }) => {
    if (!target.closest("#new-run")) return;
    const box = document.querySelector("#new-run-typed textarea, #new-run-typed input");
    const value = await typed();
    if (box.value === value) return;
    box.value = value;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  });
  return {
    start: () => { asked = { search, acts, isOvertaken: false }; return [search, paint(isDark())]; },
    toggle: () => {
      const theme = paint(!document.body.classList.contains("dark"));
      forced = null;
      try { localStorage.setItem("workbench-theme", theme); } catch { /* storage is disabled */ }
      return theme;
    },
    // run, tab, address and theme as the server read them, or as they are if the user has gone on meanwhile; then null
    // for the reply, which is used once
    open: (reply, ...present) => {
      isOpen = true;
      return [...(reply && asked.search === search && !asked.isOvertaken ? reply : present), null];
    },
    guide: (section) => { // the section of the open tab, in a page of its own
      const root = (window.gradio_config?.root || "").replace(/\/$/, "");
      window.open(`${root}/guide/reading-the-pictures#${section || ""}`, "_blank", "noopener");
    },
    // the view that a place opens: the open one, or the one that it had last
    enter: (views, tab) => views.includes(tab) ? tab : views.find((view) => lastOf[view]) || views[0],
    // the tabs of the page and of the places with several views, when `tab` is open
    select: (places, tab) => {
      const chosen = (selected) => ({ __type__: "update", selected });
      const [name, views] = places.find(([, views]) => views.includes(tab)) || places[0];
      for (const view of views) lastOf[view] = view === tab;
      const inner = places.filter(([, views]) => views.length > 1).map(([, views]) =>
        views.includes(tab) ? chosen(tab) : undefined);
      return [chosen(name), ...inner];
    },
    refresh: () => { refreshes += 1; },
    pin: (index, answer) => { // the address gets the pinned token and its answer
      pinned = { ...answer, token: index };
      write();
    },
    answered: (answer) => { // another answer is open: the address drops the pinned token
      if (pinned === null || Object.entries(answer).every(([key, value]) => pinned[key] === value)) return;
      pinned = null;
      write();
    },
    typed,
    // the address with a choice; a usual one is left out, and a new one drops the parameters `forgotten`
    choose: (name, usual, forgotten, address, chosen) => {
      const text = chosen === true ? "1" : String(chosen || "").trim();
      const value = text === usual ? "" : text;
      if (value === (address?.[name] ?? "")) return address;
      const next = { ...address, [name]: value };
      for (const other of value ? forgotten : [name, ...forgotten]) delete next[other];
      return next;
    },
    // the address that opens a row: parameters that stay, and those that the columns of its key give
    opened: (kept, fixed, columns, address) => {
      const next = {};
      for (const name of kept) if (address?.[name]) next[name] = address[name];
      for (const [name, column] of Object.entries(columns)) {
        const value = window.workbenchChosenKey[column] ?? "";
        const isDefault = name === "process" && value === 0;
        if (value !== "" && !isDefault) next[name] = String(value);
      }
      return { ...next, ...fixed };
    },
    run: (chosen) => chosen || new URLSearchParams(location.search).get("run"),
    // writes the address, and changes the trigger of the open tab, which draws it
    show: (tabs, run, tab, theme, address, ...triggers) => {
      if (!tab || !isOpen) return triggers;
      const before = page;
      page = { run, tab, address: address || {} };
      window.workbenchSidebar.mark(run, page.address.with);
      const isOther = (...names) => before && names.some((name) =>
        JSON.stringify(page[name]) !== JSON.stringify(before[name]));
      if (isOther("run", "address")) pinned = null;
      if (isOther("run", "tab", "address") && acts > asked.acts) asked.isOvertaken = true;
      write(isOther("run", "tab", "address"));
      const drawn = { ...address, list: undefined }; // a folded list draws nothing
      return tabs.map((name, k) => name === tab ? JSON.stringify([run, theme, drawn, refreshes]) : triggers[k]);
    },
  };
})();
