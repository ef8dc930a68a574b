/* Makes every answer fragment of a page interactive: hover, pin, keyboard, choice of colors.
 *
 * Listeners are on the document, so fragments that are added later (a Gradio update, a notebook cell) need no script of
 * their own; an observer fills their detail panel. The script never uses innerHTML, since token text is untrusted.
 * Events for the host page, which bubble from the fragment: "workbench:pin" {index} when the user pins a token, and
 * "workbench:rollout" {direction: -1 | 1} for the up and down keys, in a long answer from its first or last line. To
 * prevent scrolling, call preventDefault() on the latter.
 */
(() => {
  "use strict";
  if (window.workbenchTokens) return;

  const SVG = "http://www.w3.org/2000/svg";
  const DASH = "–";
  const loaded = new WeakMap(); // fragment -> its data

  const dataOf = (root) => {
    if (!loaded.has(root)) loaded.set(root, JSON.parse(root.querySelector("template.wb-data").content.textContent));
    return loaded.get(root);
  };
  const tokenAt = (root, index) => {
    root.workbenchFill?.(index); // a long answer has only the tokens near the screen
    return root.querySelector(`.wb-t[data-i="${index}"]`);
  };

  // ---- small builders

  const make = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value, digits) => {
    if (value === null || value === undefined) return DASH;
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
  };
  const signed = (value, digits = 2) => {
    const text = number(value, digits);
    return value > 0 && Number(text) !== 0 ? "+" + text : text;
  };
  const percent = (probability) => {
    const value = 100 * probability;
    if (value >= 99.95 || value === 0) return `${value.toFixed(0)}%`;
    return value < 0.1 ? "<0.1%" : `${value.toFixed(value < 10 ? 1 : 0)}%`;
  };

  // ---- details of one token

  const heading = (data, i) => {
    const badge = make("span", `wb-badge wb-s-${data.regimes[data.regime[i]].slot}`, data.regime[i]);
    const sub = [`token ${i + 1} of ${data.text.length}`, `id ${data.id[i]}`];
    if (data.token_type[i]) sub.push(data.token_type[i]);
    if (data.visibility[i]) sub.push(data.visibility[i]);
    return make("div", "wb-name", make("code", "", data.text[i]), badge, make("span", "wb-sub", sub.join(" · ")));
  };

  const facts = (data, i) => {
    const row = make("div", "wb-facts");
    const add = (label, text) => row.append(make("span", "", make("span", "wb-sub", label + " "), text));
    const { losses } = data.regimes[data.regime[i]];
    add("target", data.target[i] || "none");
    if (data.divergence[i]) add("divergence", data.divergence[i]);
    if (data.effective[i] !== null) add("effective weight", weights(losses, data.weight[i], data.effective[i]));
    else if (data.weight[i] !== null) add("router weight (the loss weight is not recorded)", number(data.weight[i], 2));
    add("loss", number(data.loss[i], 3) + (data.loss[i] === null ? "" : " nats"));
    if (data.denoising[i] !== null) add("denoising step", String(data.denoising[i]));
    return row;
  };

  /* Effective weight of each loss: the router's weight of the token times the method's weight of the loss. */
  const weights = (losses, router, total) => {
    const factors = (loss) => `${number(router, 2)} (router) × ${number(loss[2], 2)} (loss)`;
    if (losses.length < 2) return number(total, 2) + (losses.length ? ` = ${factors(losses[0])}` : "");
    return losses.map((loss) => `${loss[0]} ${number(router * loss[2], 2)} = ${factors(loss)}`).join("; ");
  };

  const viewTable = (data, i, options, isFull) => {
    const table = make("table", "wb-views");
    const head = make("tr", "", make("th", ""));
    for (const view of data.views) {
      const cell = make("th", "", view.name);
      cell.scope = "col";
      if (view.context) cell.append(make("span", "wb-sub", view.context));
      head.append(cell);
    }
    const body = make("tbody", "");
    const row = (label, cells, className) => {
      const name = make("th", "", label);
      name.scope = "row";
      body.append(make("tr", className || "", name, ...cells));
    };
    const values = (label, columns, show, key) => {
      const cells = columns.map((column, v) => {
        const cell = make("td", "wb-value", column[i] === null ? DASH : show(column[i]));
        if (key) cell.dataset[key] = data.views[v].name;
        return cell;
      });
      if (columns.some((column) => column[i] !== null)) row(label, cells);
    };
    values("log-prob", data.logprob, (value) => number(value, 3), "logprob");
    values("prob", data.logprob, (value) => percent(Math.exp(value)));
    if (isFull) {
      values("rank", data.rank, (value) => String(value + 1));
      values("entropy", data.entropy, (value) => number(value, 2));
    }
    const longest = Math.min(options, Math.max(0, ...data.best.map((column) => column[i].length)));
    for (let k = 0; k < longest; k += 1) {
      const cells = data.best.map((column) => {
        const entry = column[i][k];
        return make("td", "", entry ? option(entry) : "");
      });
      row(k === 0 ? "top tokens" : "", cells, k === 0 ? "wb-first" : "");
    }
    table.append(make("thead", "", head), body);
    return data.unrecorded ? make("div", "", table, make("p", "wb-sub", data.unrecorded)) : table;
  };

  const option = ([text, logprob, isSampled]) => {
    const probability = Math.exp(logprob);
    const className = "wb-option" + (isSampled ? " wb-sampled" : "");
    const node = make("div", className, make("span", "", text), make("span", "", percent(probability)));
    node.style.setProperty("--p", `${(100 * probability).toFixed(1)}%`);
    return node;
  };

  const reason = (data, i) => {
    const node = make("p", `wb-why wb-s-${data.regimes[data.regime[i]].slot}`, data.why[i]);
    if (data.then[i]) node.append(" ", make("b", "", data.then[i]));
    return node;
  };

  /* Waterfall from the student's log-prob over the privileged student's (information gap) to the teacher's (capability
     gap). The axis is the log-prob of the sampled token; each bar starts where the one above ends. */
  const waterfall = (data, i) => {
    const at = Object.fromEntries(data.views.map((view, v) => [view.name, data.logprob[v][i]]));
    const steps = [
      ["information", "student", "self", data.information[i], "var(--info)"],
      ["capability", "self", "teacher", data.capability[i], "var(--cap)"],
      ["total", "student", "teacher", data.total[i], "var(--muted)"],
    ].filter(([, from, to, gap]) => gap !== null && at[from] !== undefined && at[to] !== undefined);
    if (steps.length === 0) return null;
    const isSplit = steps.length === 3;
    const title = isSplit ? "Total gap = information + capability, in nats" : `The ${steps[0][0]} gap, in nats`;
    const names = ["student", "self", "teacher"].filter((name) => at[name] !== undefined && at[name] !== null);
    const values = names.map((name) => at[name]);
    const [left, right, rowHeight, top] = [86, 310, 24, 4];
    const pad = Math.max(0.05, (Math.max(...values) - Math.min(...values)) * 0.02);
    const [low, high] = [Math.min(...values) - pad, Math.max(...values) + pad];
    const x = (value) => left + ((value - low) / (high - low)) * (right - left);
    const bottom = top + steps.length * rowHeight;
    const height = bottom + 4 + names.length * 15;
    const gaps = steps.map(([label, , , gap]) => `${label} ${signed(gap)}`).join(", ");
    const svg = draw("svg", { viewBox: `0 0 360 ${height}`, role: "img", "aria-label": `gaps in nats: ${gaps}` });
    names.forEach((name, k) => {
      const [px, y] = [x(at[name]), bottom + 13 + k * 15];
      const stroke = { stroke: "var(--muted)", "stroke-width": 1, "stroke-dasharray": "2 2" };
      svg.append(draw("line", { x1: px, x2: px, y1: top, y2: y, ...stroke }));
      const anchor = px > (left + right) / 2 ? "end" : "start";
      const label = { x: px + (anchor === "end" ? -4 : 4), y, class: "wb-quiet", "text-anchor": anchor };
      svg.append(draw("text", label, `${name} ${number(at[name], 2)}`));
    });
    steps.forEach(([label, from, to, gap, fill], k) => {
      const y = top + k * rowHeight;
      const [start, end] = [x(at[from]), x(at[to])];
      svg.append(draw("text", { x: 0, y: y + 15 }, label));
      const width = Math.max(1.5, Math.abs(end - start));
      const bar = { x: Math.min(start, end), y: y + 4, width, height: 15, rx: 1.5, fill };
      svg.append(draw("rect", { ...bar, class: `wb-bar-${label}`, "data-gap": gap }));
      svg.append(draw("text", { x: 360, y: y + 15, "text-anchor": "end", "font-weight": 600 }, signed(gap)));
    });
    return make("div", "wb-fall", make("div", "wb-heading", title), svg);
  };

  // ---- pinning

  const pin = (root, index, { byUser = false } = {}) => {
    const data = dataOf(root);
    const before = root.querySelector('.wb-t[aria-pressed="true"]');
    const token = tokenAt(root, index);
    if (!token) return;
    for (const old of root.querySelectorAll('.wb-t[tabindex="0"]')) old.tabIndex = -1;
    if (before) before.removeAttribute("aria-pressed");
    token.setAttribute("aria-pressed", "true");
    token.tabIndex = 0;
    root.dataset.pin = index;
    const fall = waterfall(data, index);
    const explanation = make("div", "", reason(data, index), ...(fall ? [fall] : []));
    const parts = make("div", "wb-parts", make("div", "", viewTable(data, index, 5, true)), explanation);
    root.querySelector(".wb-detail").replaceChildren(heading(data, index), facts(data, index), parts);
    root.dispatchEvent(new CustomEvent("workbench:pinned", { detail: { index } }));
    if (byUser) {
      token.focus();
      const gaps = `capability ${signed(data.capability[index])}, information ${signed(data.information[index])} nats`;
      root.querySelector(".wb-status").textContent = `${data.text[index]}, ${data.regime[index]}, ${gaps}`;
      root.dispatchEvent(new CustomEvent("workbench:pin", { bubbles: true, detail: { index } }));
    }
  };

  const upgrade = (root) => {
    if (root.dataset.live) return;
    root.dataset.live = "yes";
    window.workbenchTokens.upgradeLong?.(root);
    if (Number(root.dataset.pin) >= 0) pin(root, Number(root.dataset.pin));
  };

  // ---- the card of the hovered token: filled and measured at most once per frame, in the browser's top layer

  let hovered = null;
  let frame = 0;

  const showCard = () => {
    frame = 0;
    for (const card of document.querySelectorAll(".wb-card:popover-open")) {
      if (!hovered || !card.parentElement.contains(hovered)) card.hidePopover();
    }
    if (!hovered || !hovered.isConnected) return;
    const root = hovered.closest(".wb-tokens");
    const card = root.querySelector(".wb-card");
    const [data, i] = [dataOf(root), Number(hovered.dataset.i)];
    const gaps = make("div", "wb-facts");
    for (const name of ["information", "capability", "total"]) {
      gaps.append(make("span", "", make("span", "wb-sub", name + " "), signed(data[name][i])));
    }
    gaps.append(make("span", "", make("span", "wb-sub", "loss "), number(data.loss[i], 3)));
    if (data.denoising[i] !== null) {
      gaps.append(make("span", "", make("span", "wb-sub", "denoising step "), String(data.denoising[i])));
    }
    card.replaceChildren(heading(data, i), gaps, viewTable(data, i, 3, false), reason(data, i));
    if (!card.matches(":popover-open")) card.showPopover();
    const [spot, size] = [hovered.getBoundingClientRect(), card.getBoundingClientRect()];
    const main = root.querySelector(".wb-main").getBoundingClientRect();
    const end = main.width > size.width ? main.right : window.innerWidth - 8; // keeps the pinned token visible
    const x = Math.max(8, Math.min(spot.left - 12, end - size.width));
    const below = spot.bottom + (root.dataset.bars === "on" ? 32 : 8);
    const y = below + size.height < window.innerHeight ? below : Math.max(8, spot.top - size.height - 14);
    card.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  };
  const hover = (token) => {
    if (token === hovered) return;
    hovered = token;
    if (!frame) frame = requestAnimationFrame(showCard);
  };

  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".wb-t");
    hover(token && event.pointerType !== "touch" ? token : null);
  });
  document.addEventListener("pointerleave", () => hover(null));
  window.addEventListener("scroll", () => hover(null), { passive: true, capture: true });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".wb-tokens button");
    if (!button) return;
    const root = button.closest(".wb-tokens");
    if (button.classList.contains("wb-t")) {
      pin(root, Number(button.dataset.i), { byUser: true });
    } else if (button.dataset.by) {
      root.dataset.by = button.dataset.by;
      for (const chip of root.querySelectorAll(".wb-chip[data-by]")) {
        chip.setAttribute("aria-pressed", String(chip === button));
      }
    } else if ("bars" in button.dataset) {
      root.dataset.bars = root.dataset.bars === "on" ? "off" : "on";
      button.setAttribute("aria-pressed", String(root.dataset.bars === "on"));
    }
  });

  document.addEventListener("keydown", (event) => {
    const token = event.target.closest?.(".wb-t");
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    const root = token.closest(".wb-tokens");
    const [index, last] = [Number(token.dataset.i), dataOf(root).text.length - 1];
    const forward = getComputedStyle(token.parentElement).direction === "rtl" ? -1 : 1;
    const goal = { ArrowRight: index + forward, ArrowLeft: index - forward, Home: 0, End: last }[event.key];
    if (goal !== undefined) {
      event.preventDefault();
      hover(null);
      pin(root, Math.max(0, Math.min(last, goal)), { byUser: true });
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const below = root.workbenchLine?.(token, event.key === "ArrowUp" ? -1 : 1);
      if (below !== undefined) {
        event.preventDefault();
        pin(root, below, { byUser: true });
        return;
      }
      const detail = { direction: event.key === "ArrowUp" ? -1 : 1 };
      const move = new CustomEvent("workbench:rollout", { bubbles: true, cancelable: true, detail });
      if (!root.dispatchEvent(move)) event.preventDefault();
    } else if (event.key === "Escape") {
      hover(null);
    }
  });

  // ---- prompts: a long one is scrolled to the first line that the student does not get

  document.addEventListener("toggle", (event) => {
    for (const mark of event.target.querySelectorAll?.(".wb-prompt pre > mark:first-of-type") ?? []) {
      const box = mark.parentElement;
      box.scrollTop = mark.offsetTop - box.offsetTop - box.clientHeight / 2;
    }
  }, true);

  // ---- present fragments, and those added later

  const upgradeAll = () => document.querySelectorAll(".wb-tokens:not([data-live])").forEach(upgrade);
  const start = () => {
    upgradeAll();
    new MutationObserver(upgradeAll).observe(document.body, { childList: true, subtree: true });
  };
  window.workbenchTokens = { dataOf, tokenAt, make, draw, number, signed, pin };
  // after long.js, which follows this script
  if (document.readyState !== "loading") queueMicrotask(start);
  else document.addEventListener("DOMContentLoaded", start);
})();
