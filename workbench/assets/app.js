// The page's own few lines: the theme, and what the address says. Runs before anything is drawn.
window.workbenchApp = (() => {
  const asked = location.search; // the page may rewrite it before the server has answered
  let forced = new URLSearchParams(asked).get("__theme"); // a link may choose the theme
  let looks = 0;
  let isOpen = false; // the address is not touched before the server has read it
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
  return {
    asked: () => asked,
    start: () => [asked, paint(isDark())],
    toggle: () => {
      const theme = paint(!document.body.classList.contains("dark"));
      forced = null;
      try { localStorage.setItem("workbench-theme", theme); } catch { /* a browser that stores nothing */ }
      return theme;
    },
    open: () => { isOpen = true; },
    look: () => { looks += 1; },
    pin: (index) => { // the address of the open answer names the token that the reader looks at
      const query = new URLSearchParams(location.search);
      query.set("token", index);
      history.replaceState(null, "", `${location.pathname}?${query}`);
    },
    // resolves when the reader has paused; only the last key press of several changes what it returns. Two events of one
    // form, asked at once, may be answered in either order, so the server is asked once, of the form as it is then
    typed: async () => {
      const mine = ++keys;
      await new Promise((done) => setTimeout(done, 150));
      return mine === keys ? (rested = String(mine)) : rested;
    },
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
      const query = new URLSearchParams();
      if (run) query.set("run", run);
      query.set("tab", tab);
      for (const [key, value] of Object.entries(address || {}))
        if (value !== null && value !== undefined && value !== "") query.set(key, value);
      if (forced) query.set("__theme", forced);
      history.replaceState(null, "", `${location.pathname}?${query}`);
      return tabs.map((name, k) => name === tab ? JSON.stringify([run, theme, address, looks]) : wakes[k]);
    },
  };
})();
