/* Charts of Training: cards with a head, a figure and buttons, drawn by the Plotly that Gradio brings.
 *
 * The component's value is JSON of app/chart_cards.py:
 *   { series: [{ name, color, dash }], groups: [{ title, figures: [{ name, figure, wide }] }], notes: [text] }
 * Only figures in sight are drawn, and only those that differ from what is drawn, so that a redraw of a living run costs
 * little and keeps the zoom. A click on a step sends { step } to Python. */
window.workbenchPlotly = (() => {
  let loading;
  /* Gradio loads Plotly with its first figure; its module sets window.Plotly. */
  return () => (loading ||= (async () => {
    const index = document.querySelector('script[type="module"][src*="assets/"]');
    if (!window.Plotly) await import(new URL(window.workbenchPlotlyFile, new URL(".", index.src)));
    return window.Plotly;
  })());
})();

window.workbenchFigures = (() => {
  const save = (name, type, content) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const bare = (html) =>
    new DOMParser().parseFromString((html || "").replaceAll("<br>", " "), "text/html").body.textContent;
  const list = (values) => Array.from(values?._inputArray ?? values ?? []);
  /* Rows of what a figure draws: a row per point, cell or link. */
  const rowsOf = (data, layout) => {
    const axis = bare(layout.xaxis?.title?.text) || "x";
    const further = axis === "step" ? [] : [axis];
    const rows = [["curve", "step", ...further, "value", "smoothed", "low", "high"]];
    const isCurve = data.some((trace) => trace.meta?.curve);
    if (isCurve) {
      for (const trace of data.filter((item) => item.meta?.curve))
        list(trace.x).forEach((x, k) => {
          const [step, raw, , low, high] = trace.customdata[k];
          rows.push([trace.meta.curve, step, ...further.map(() => x), raw, list(trace.y)[k], low, high]);
        });
      return rows;
    }
    rows[0] = ["curve", axis, bare(layout.yaxis?.title?.text) || "y", "value"];
    for (const trace of data) {
      const name = trace.meta?.label ?? bare(trace.name); // panels share the names of their legend
      if (trace.type === "sankey")
        trace.link.source.forEach((from, k) => rows.push(
          [name, bare(trace.node.label[from]), bare(trace.node.label[trace.link.target[k]]), trace.link.value[k]]));
      else if (trace.z) trace.z.forEach((line, k) => list(line).forEach((value, column) =>
        rows.push([name, list(trace.x)[column], list(trace.y)[k], value])));
      else list(trace.x).forEach((x, k) => rows.push([name, x, list(trace.y)[k], ""]));
    }
    return rows;
  };
  const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const image = async (format, name, data, layout) => {
    const plotly = await workbenchPlotly();
    const size = { width: 960, height: Math.max(480, layout.height || 0) };
    const options = { format, ...size, scale: format === "png" ? 2 : 1, filename: name };
    await plotly.downloadImage({ data, layout: { ...layout, ...size, autosize: false } }, options);
  };
  /* Buttons that save a figure. `source()` gives { data, layout } for export. */
  const tools = (name, source) => {
    const bar = document.createElement("div");
    bar.className = "wbf-tools";
    const actions = {
      PNG: () => image("png", name(), source().data, source().layout),
      SVG: () => image("svg", name(), source().data, source().layout),
      CSV: () => save(`${name()}.csv`, "text/csv", csv(rowsOf(source().data, source().layout))),
    };
    for (const [label, action] of Object.entries(actions)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.title = label === "CSV" ? "Save the numbers that are drawn" : `Save this figure as ${label}`;
      button.addEventListener("click", action);
      bar.append(button);
    }
    return bar;
  };
  const fileName = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  const saveRows = (title, rows) => save(`${fileName(title)}.csv`, "text/csv", csv(rows));
  /* Figures that Gradio draws get the same buttons. */
  const decorate = () => {
    for (const card of document.querySelectorAll(".app-plot:not(:has(.wbf-tools))")) {
      const plot = () => card.querySelector(".js-plotly-plot");
      if (!plot()) continue;
      const title = () => bare(plot().layout.title?.text?.split("<br>")[0]) || "figure";
      const source = () => ({ data: plot().data, layout: plot().layout });
      card.append(tools(() => fileName(title()), source));
    }
  };
  let waiting = false;
  document.addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; decorate(); }, 300);
  }).observe(document.body, { childList: true, subtree: true }));
  const copyLink = async () => {
    const button = document.querySelector("#training-link");
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch { // the page is not served over HTTPS
      button.textContent = "Copy it from the address bar";
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 2000);
  };
  const saveCsv = (name, text) => { if (text) save(name, "text/csv", text); }; // empty: the page shows an error
  return { tools, saveCsv, saveRows, copyLink };
})();

window.workbenchCharts = (element, trigger, watch, props) => {
  const CONFIG = { displayModeBar: false, displaylogo: false, showTips: false, responsive: false };
  const cards = new Map(); // by name of the figure
  const hidden = new Set(); // names of series and metrics that the user switched off
  const root = document.createElement("div");
  root.className = "wbf";
  const node = (tag, css, text) => {
    const created = document.createElement(tag);
    if (css) created.className = css;
    if (text) created.textContent = text;
    return created;
  };
  const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" };
  const swatch = (color, dash) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    line.setAttribute("viewBox", "0 0 26 8");
    line.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", "M0 4H26");
    path.setAttribute("style", `stroke:${color};stroke-width:3;stroke-dasharray:${DASHES[dash] || "none"}`);
    line.append(path);
    return line;
  };
  const entry = (key, label, color, dash) => {
    const button = node("button", "wbf-entry");
    button.type = "button";
    button.title = `${label}: show or hide`;
    button.setAttribute("aria-pressed", String(!hidden.has(key)));
    button.append(swatch(color, dash), node("span", "", label));
    button.addEventListener("click", () => {
      if (hidden.has(key)) hidden.delete(key); else hidden.add(key);
      render();
    });
    return button;
  };
  const isShown = (trace) => !hidden.has(`series:${trace.meta?.series}`) && !hidden.has(`metric:${trace.meta?.metric}`);

  /* On the page title and legend stand beside the axes, so that they wrap and cover nothing. */
  const onPage = ({ data, layout }) => (!layout.meta ? { data, layout: { ...layout, autosize: true } } : {
    data: data.map((trace) => (isShown(trace) ? trace : { ...trace, visible: false })),
    layout: {
      ...layout, title: undefined, showlegend: false, autosize: true, uirevision: "kept",
      margin: { l: 58, r: 14, t: 10, b: 44 }, height: 236,
    },
  });
  const cross = (x) => {
    for (const { plot, line } of cards.values()) {
      const axis = plot._fullLayout?.xaxis;
      const at = axis && x !== null ? axis.d2p(x) : NaN;
      line.hidden = !(at >= 0 && at <= axis?._length);
      if (!line.hidden) line.style.left = `${plot.offsetLeft + axis._offset + at}px`;
    }
  };
  const draw = async (card) => {
    const plotly = await workbenchPlotly();
    if (!card.isInSight || card.drawn === card.wanted() || !card.box.isConnected) return;
    card.drawn = card.wanted();
    const { data, layout } = onPage(card.figure);
    const isFirst = !card.plot._fullLayout;
    await plotly.react(card.plot, data, layout, CONFIG);
    if (!isFirst) return;
    card.plot.on("plotly_hover", (event) => cross(event.xvals?.[0] ?? null));
    card.plot.on("plotly_unhover", () => cross(null));
    card.plot.on("plotly_click", (event) => {
      const point = event.points.find((item) => item.customdata);
      if (point) trigger("select", { key: { step: point.customdata[0] } });
    });
    new ResizeObserver(() => { if (card.plot.offsetWidth) plotly.Plots.resize(card.plot); }).observe(card.plot);
  };
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = cards.get(target.dataset.name);
      if (!card) continue;
      card.isInSight = isIntersecting;
      if (isIntersecting) draw(card);
    }
  }, { rootMargin: "200px" });

  const newCard = (name) => {
    const box = node("section", "wbf-card");
    box.dataset.name = name;
    const [title, legend, plot, line, notes] = [node("h3"), node("div", "wbf-legend"), node("div", "wbf-plot"),
      node("i", "wbf-cross"), node("p", "wbf-notes")];
    line.hidden = true;
    const card = { box, title, legend, plot, line, notes, isInSight: false, drawn: null };
    card.wanted = () => card.text + JSON.stringify([...hidden]);
    const head = node("header");
    head.append(title, workbenchFigures.tools(() => name, () => card.figure));
    box.append(head, legend, plot, line, notes);
    sight.observe(box);
    return card;
  };
  const fill = (card, { figure, wide }, several) => {
    card.figure = figure;
    card.text = JSON.stringify(figure);
    card.box.classList.toggle("wbf-wide", Boolean(wide));
    const meta = figure.layout.meta;
    card.box.classList.toggle("wbf-native", !meta);
    if (!meta) return;
    card.title.textContent = meta.title;
    card.title.title = meta.about || "";
    card.box.setAttribute("aria-label", meta.title);
    const entries = several ? meta.metrics : meta.legend;
    card.legend.replaceChildren(...(entries.length > 1
      ? entries.map(({ key, label, color, dash }) => entry(key, label, color, dash)) : []));
    card.notes.textContent = meta.notes.join(" ");
    card.plot.hidden = !figure.data.length;
  };
  let shape = "";
  /* Legend of the runs, notes, and a grid of cards for each group. */
  const arrange = (value, several) => {
    const parts = [];
    if (several) {
      const legend = node("div", "wbf-legend wbf-runs");
      legend.append(...value.series.map(({ name, color, dash }) => entry(`series:${name}`, name, color, dash)));
      parts.push(legend);
    }
    if (value.groups.length) parts.push(node("p", "wbf-marks",
      "On the axis: ○ evaluation · ▲ checkpoint · ✕ not finite. A click on a step opens its answers; a drag zooms in, a "
      + "double click out."));
    for (const text of value.notes) parts.push(node("p", "app-note app-hint", text));
    for (const group of value.groups) {
      const grid = node("div", "wbf-grid");
      grid.append(...group.figures.map(({ name }) => cards.get(name).box));
      parts.push(node("h2", "", group.title), grid);
    }
    root.replaceChildren(...parts);
  };
  const render = () => {
    if (!root.isConnected) element.replaceChildren(root);
    const value = props.value ? JSON.parse(props.value) : { series: [], groups: [], notes: [] };
    const several = value.series.length > 1;
    const items = value.groups.flatMap((group) => group.figures);
    for (const item of items) {
      if (!cards.has(item.name)) cards.set(item.name, newCard(item.name));
      fill(cards.get(item.name), item, several);
    }
    const next = JSON.stringify([value.series, value.notes, [...hidden],
      value.groups.map(({ title, figures }) => [title, figures.map(({ name }) => name)])]);
    if (next !== shape) arrange(value, several); // else the cards stay where they are
    shape = next;
    const names = new Set(items.map(({ name }) => name));
    for (const [name, card] of cards) if (!names.has(name)) {
      sight.unobserve(card.box);
      if (card.plot._fullLayout) window.Plotly.purge(card.plot);
      cards.delete(name);
    }
    for (const card of cards.values()) if (card.isInSight) draw(card);
  };
  watch("value", render);
  render();
};
