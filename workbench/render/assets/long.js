/* A long answer: an overview strip, a chart, steps to the next token of a regime, and windows.
 *
 * 1. Only chunks near the screen hold tokens; the others keep the height that they had or will about have.
 * 2. The strip has a stacked bar of regimes for every few tokens, and marks what is on the screen.
 * 3. Stretches on which all views agree can be folded.
 * Follows tokens.js in the same script. Token text is untrusted: no innerHTML.
 */
(() => {
  "use strict";
  if (window.workbenchTokens?.upgradeLong) return;
  const { dataOf, tokenAt, make, draw, number, signed, pin } = window.workbenchTokens;

  const NEAR = 700; // pixels around the screen in which chunks hold their tokens
  const BINS = 400; // of the strip and the chart
  const [AGREED, SHORTEST] = [0.1, 12]; // nats between any two views; tokens of a stretch worth folding

  // ---- chunks

  const tokenNode = (root, data, i) => {
    const node = make("button", data.classes[data.look[i]]);
    node.type = "button";
    node.dataset.i = i;
    node.tabIndex = root.dataset.pin === String(i) ? 0 : -1;
    if (root.dataset.pin === String(i)) node.setAttribute("aria-pressed", "true");
    node.setAttribute("aria-label", `${data.text[i].replaceAll("·", " ").trim() || data.text[i]}, ${data.regime[i]}`);
    if (data.bars[i]) node.style.cssText = data.bars[i];
    if (i === 0 || data.regime[i] !== data.regime[i - 1]) {
      const tag = make("i", "", data.regime[i]);
      tag.setAttribute("aria-hidden", "true");
      node.append(tag);
    }
    const pieces = data.literalSet.has(i) ? [data.text[i]] : data.text[i].split(/([·↵→])/);
    for (const piece of pieces) if (piece) node.append(/^[·↵→]$/.test(piece) ? make("s", "", piece) : piece);
    return node;
  };

  const foldNode = (from, to) => {
    const node = make("button", "wb-fold", `⋯ ${to - from} tokens, all views agree`);
    node.type = "button";
    node.dataset.fold = from;
    return node;
  };

  const rangeOf = (chunk) => [Number(chunk.dataset.from), Number(chunk.dataset.to)];

  const fill = (root, chunk) => {
    if (chunk.firstChild) return;
    const data = dataOf(root);
    const [from, to] = rangeOf(chunk);
    const nodes = [];
    for (let i = from; i < to; i += 1) {
      const stretch = root.workbenchFolds?.get(i);
      if (stretch !== undefined) {
        if (stretch[0] === i) nodes.push(foldNode(...stretch));
        i = Math.min(to, stretch[1]) - 1;
        continue;
      }
      nodes.push(tokenNode(root, data, i));
      if (data.breakSet.has(i)) nodes.push(make("br", ""));
    }
    chunk.style.height = "";
    chunk.append(...nodes);
  };

  const empty = (chunk, height) => {
    if (!chunk.firstChild || chunk.contains(document.activeElement)) return;
    chunk.style.height = `${height}px`;
    chunk.replaceChildren();
  };

  /* Heights before a chunk was ever filled: its signs over the signs of a line. */
  const estimate = (root, data, chunks) => {
    const answer = root.querySelector(".wb-answer");
    const row = root.dataset.bars === "on" ? 63 : 40;
    const perLine = Math.max(1, answer.clientWidth);
    for (const chunk of chunks) {
      if (chunk.firstChild) continue;
      const [from, to] = rangeOf(chunk);
      let [width, lines] = [0, 0];
      for (let i = from; i < to; i += 1) {
        if (root.workbenchFolds?.has(i)) continue;
        width += 11 + 8.5 * data.text[i].length;
        if (data.breakSet.has(i) || i === to - 1) {
          lines += Math.ceil(width / perLine);
          width = 0;
        }
      }
      chunk.style.height = `${Math.max(1, lines) * row}px`;
    }
  };

  const fillNear = (root) => {
    for (const chunk of root.querySelectorAll(".wb-chunk")) if (isNear(chunk)) fill(root, chunk);
  };

  const refill = (root) => {
    const chunks = [...root.querySelectorAll(".wb-chunk")];
    for (const chunk of chunks) chunk.replaceChildren();
    estimate(root, dataOf(root), chunks);
    fillNear(root);
  };

  const isNear = (chunk) => {
    const box = chunk.getBoundingClientRect();
    return box.bottom > -NEAR && box.top < window.innerHeight + NEAR;
  };

  const upgradeChunks = (root, data) => {
    const chunks = [...root.querySelectorAll(".wb-chunk")];
    root.workbenchFill = (index) => {
      const stretch = root.workbenchFolds?.get(index);
      if (stretch) unfold(root, stretch);
      const chunk = chunks.find((item) => Number(item.dataset.to) > index);
      if (chunk) fill(root, chunk);
    };
    estimate(root, data, chunks);
    fillNear(root);
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting, boundingClientRect } of entries)
        (isIntersecting ? fill(root, target) : empty(target, boundingClientRect.height)); // offsetHeight would lay out
    }, { rootMargin: `${NEAR}px 0px` });
    for (const chunk of chunks) observer.observe(chunk);
    /* The token of the next line (direction 1) or the line before, nearest to a token; undefined at the ends. */
    root.workbenchLine = (token, direction) => {
      const spot = token.getBoundingClientRect();
      const middle = (spot.left + spot.right) / 2;
      const last = data.text.length - 1;
      let [best, distance, line] = [undefined, Infinity, null];
      for (let i = Number(token.dataset.i) + direction; i >= 0 && i <= last; i += direction) {
        if (root.workbenchFolds?.get(i)) continue;
        const box = tokenAt(root, i).getBoundingClientRect();
        if (Math.abs(box.top - spot.top) < 8) continue;
        line ??= box.top;
        if (Math.abs(box.top - line) > 8) break;
        const away = Math.abs((box.left + box.right) / 2 - middle);
        if (away < distance) [best, distance] = [i, away];
      }
      return best;
    };
  };

  // ---- folding

  const stretches = (data) => {
    const agree = (i) => ["total", "capability", "information"].every((name) => Math.abs(data[name][i] ?? 0) < AGREED)
      && ["total", "capability", "information"].some((name) => data[name][i] !== null);
    const result = [];
    for (let i = 0; i < data.text.length; i += 1) {
      let end = i;
      while (end < data.text.length && agree(end) && !data.markedSet.has(end)) end += 1;
      if (end - i >= SHORTEST) result.push([i, end]);
      i = Math.max(i, end);
    }
    return result;
  };

  const setFolds = (root, list) => {
    root.workbenchFolds = list && new Map();
    const pinned = Number(root.dataset.pin);
    for (const stretch of list ?? []) {
      if (pinned >= stretch[0] && pinned < stretch[1]) continue;
      for (let i = stretch[0]; i < stretch[1]; i += 1) root.workbenchFolds.set(i, stretch);
    }
    refill(root);
  };

  const unfold = (root, [from, to]) => {
    for (let i = from; i < to; i += 1) root.workbenchFolds.delete(i);
    for (const chunk of root.querySelectorAll(".wb-chunk")) {
      const [start, end] = rangeOf(chunk);
      if (start < to && end > from && chunk.firstChild) {
        chunk.replaceChildren();
        fill(root, chunk);
      }
    }
  };

  // ---- the strip

  const strip = (root, data, goTo) => {
    const size = data.text.length;
    const [bins, names] = [Math.min(size, BINS), Object.keys(data.regimes)];
    const svg = draw("svg", { viewBox: `0 0 ${bins} 24`, preserveAspectRatio: "none", class: "wb-strip", role: "img" });
    const shares = names.map((name) => `${name} ${data.regime.filter((regime) => regime === name).length}`);
    svg.setAttribute("aria-label", `regimes of all ${size} tokens: ${shares.join(", ")}`);
    const paths = names.map(() => "");
    for (let bin = 0; bin < bins; bin += 1) {
      const [from, to] = [Math.floor((bin * size) / bins), Math.floor(((bin + 1) * size) / bins)];
      const counts = names.map(() => 0);
      for (let i = from; i < to; i += 1) counts[names.indexOf(data.regime[i])] += 1;
      let y = 0;
      counts.forEach((count, k) => {
        const height = (20 * count) / (to - from);
        if (count) paths[k] += `M${bin} ${y.toFixed(2)}h1v${height.toFixed(2)}h-1z`;
        y += height;
      });
    }
    names.forEach((name, k) => svg.append(draw("path", { d: paths[k], class: `wb-s-${data.regimes[name].slot}` })));
    const ticks = data.marked.map((i) => `M${((i + 0.5) * bins / size).toFixed(2)} 20v4`).join("");
    svg.append(draw("path", { d: ticks, class: "wb-ticks" }));
    const screen = draw("rect", { class: "wb-screen", y: 0, height: 20, x: 0, width: 1 });
    const needle = draw("path", { class: "wb-needle" });
    svg.append(screen, needle);
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      return Math.max(0, Math.min(size - 1, Math.floor(((event.clientX - box.left) / box.width) * size)));
    };
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      goTo(at(event), false);
    });
    svg.addEventListener("pointermove", (event) => {
      if (event.buttons) goTo(at(event), false);
    });
    svg.addEventListener("pointerup", (event) => goTo(at(event), true));
    const update = () => {
      const [from, to] = onScreen(root);
      screen.setAttribute("x", (from * bins) / size);
      screen.setAttribute("width", Math.max(1.5, ((to - from) * bins) / size));
      const x = ((Number(root.dataset.pin) + 0.5) * bins) / size;
      needle.setAttribute("d", `M${x} 0v24`);
    };
    return [svg, update];
  };

  /* First token on the screen and the first behind it, from the heights of chunks. */
  const onScreen = (root) => {
    let [from, to] = [Infinity, 0];
    for (const chunk of root.querySelectorAll(".wb-chunk")) {
      const box = chunk.getBoundingClientRect();
      if (box.bottom < 0 || box.top > window.innerHeight || box.height === 0) continue;
      const [start, end] = rangeOf(chunk);
      const share = (y) => Math.max(0, Math.min(1, (y - box.top) / box.height));
      from = Math.min(from, start + (end - start) * share(0));
      to = Math.max(to, start + (end - start) * share(window.innerHeight));
    }
    return from === Infinity ? [0, 0] : [Math.floor(from), Math.ceil(to)];
  };

  // ---- the chart of a quantity against position

  const quantities = (data) => {
    const views = data.views.map((view) => view.name);
    const list = [["information gap", data.information, true], ["capability gap", data.capability, true]];
    list.push(["total gap", data.total, true], ["loss", data.loss], ["effective weight", data.effective]);
    list.push(["trainer − sampler log-prob", data.mismatch, true]);
    views.forEach((name, v) => list.push([`log-prob, ${name}`, data.logprob[v]], [`entropy, ${name}`, data.entropy[v]]));
    return list.filter(([, column]) => column.some((value) => value !== null));
  };

  const HEIGHT = 90;

  const curve = (column, [from, to], isSigned) => {
    const bins = Math.min(to - from, BINS);
    const values = column.slice(from, to).filter((value) => value !== null);
    let [low, high] = values.length ? [Infinity, -Infinity] : [0, 1];
    for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
    if (isSigned || low > 0) low = Math.min(0, low);
    if (isSigned || high < 0) high = Math.max(0, high);
    if (low === high) high = low + 1;
    const y = (value) => (HEIGHT * (high - value)) / (high - low);
    let d = "";
    for (let bin = 0; bin < bins; bin += 1) {
      const start = from + Math.floor((bin * (to - from)) / bins);
      const end = from + Math.floor(((bin + 1) * (to - from)) / bins);
      let [least, most] = [Infinity, -Infinity];
      for (let i = start; i < end; i += 1) {
        if (column[i] !== null) [least, most] = [Math.min(least, column[i]), Math.max(most, column[i])];
      }
      if (least === Infinity) continue;
      const [x0, x1] = [(1000 * bin) / bins, (1000 * (bin + 1)) / bins];
      // from zero to the extremes of the bin, at least a hair high
      const [top, bottom] = [y(Math.max(most, Math.min(0, high))), y(Math.min(least, Math.max(0, low)))];
      d += `M${x0.toFixed(1)} ${(top - 0.4).toFixed(1)}H${x1.toFixed(1)}V${(bottom + 0.4).toFixed(1)}H${x0.toFixed(1)}z`;
    }
    return { d, low, high, zero: y(0) };
  };

  const chart = (root, data, goTo) => {
    const list = quantities(data);
    if (list.length === 0) return [make("div", ""), () => {}];
    const size = data.text.length;
    let range = [0, size];
    const select = make("select", "wb-pick");
    list.forEach(([label], k) => select.append(new Option(label, k)));
    select.setAttribute("aria-label", "quantity of the chart");
    const button = (text, label, act) => {
      const node = make("button", "wb-chip", text);
      node.type = "button";
      node.title = label;
      node.setAttribute("aria-label", label);
      node.addEventListener("click", act);
      return node;
    };
    const label = make("span", "wb-faint wb-reading", "");
    const svg = draw("svg", { viewBox: `0 0 1000 ${HEIGHT}`, preserveAspectRatio: "none", class: "wb-curve" });
    const [area, zero, needle, box] = ["wb-area", "wb-zero", "wb-needle", "wb-screen"].map((name) =>
      draw(name === "wb-screen" ? "rect" : "path", { class: name }));
    svg.append(zero, area, box, needle);
    const [high, low] = [make("span", "wb-high"), make("span", "wb-low")];
    const xOf = (i) => (1000 * (i + 0.5 - range[0])) / (range[1] - range[0]);
    const update = () => {
      const x = xOf(Number(root.dataset.pin));
      needle.setAttribute("d", x >= 0 && x <= 1000 ? `M${x} 0V${HEIGHT}` : "");
    };
    const redraw = () => {
      const [name, column, isSigned] = list[select.value];
      const result = curve(column, range, isSigned);
      area.setAttribute("d", result.d);
      zero.setAttribute("d", `M0 ${result.zero}H1000`);
      [high.textContent, low.textContent] = [number(result.high, 2), number(result.low, 2)];
      label.textContent = `tokens ${range[0] + 1} to ${range[1]} of ${size}`;
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `${name} of ${label.textContent}, ${low.textContent} to ${high.textContent}`);
      update();
    };
    const zoom = (factor) => {
      const pinned = Number(root.dataset.pin);
      const middle = pinned >= range[0] && pinned < range[1] ? pinned : (range[0] + range[1]) / 2;
      const length = Math.max(20, Math.min(size, Math.round((range[1] - range[0]) * factor)));
      const start = Math.max(0, Math.min(size - length, Math.round(middle - length / 2)));
      range = [start, start + length];
      redraw();
    };
    const at = (event) => {
      const spot = svg.getBoundingClientRect();
      const share = Math.max(0, Math.min(0.9999, (event.clientX - spot.left) / spot.width));
      return range[0] + Math.floor(share * (range[1] - range[0]));
    };
    let from = null;
    svg.addEventListener("pointerdown", (event) => {
      from = at(event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      const i = at(event);
      const [name, column, isSigned] = list[select.value];
      const value = isSigned ? signed(column[i]) : number(column[i], 3);
      label.textContent = `token ${i + 1} “${data.text[i]}” ${data.regime[i]}: ${name} ${value}`;
      const [x0, x1] = from === null ? [0, 0] : [xOf(Math.min(from, i)), xOf(Math.max(from, i))];
      for (const [key, value] of Object.entries({ x: x0, y: 0, width: x1 - x0, height: HEIGHT })) box.setAttribute(key, value);
    });
    svg.addEventListener("pointerup", (event) => {
      const to = at(event);
      box.setAttribute("width", 0);
      if (from !== null && Math.abs(to - from) >= 10) {
        range = [Math.min(from, to), Math.max(from, to) + 1];
        redraw();
      } else if (from !== null) goTo(to, true);
      from = null;
    });
    svg.addEventListener("pointerleave", () => { if (from === null) redraw(); });
    select.addEventListener("change", redraw);
    const row = make("div", "wb-nav", select, button("+", "zoom in around the pinned token", () => zoom(1 / 3)),
      button("−", "zoom out", () => zoom(3)), button("all", "the whole answer", () => zoom(Infinity)), label);
    redraw();
    return [make("div", "wb-chart", row, make("div", "wb-plot", svg, high, low)), update];
  };

  // ---- steps to the next token, folding, plain text

  const steps = (root, data, goTo) => {
    const select = make("select", "wb-pick");
    const add = (label, fits) => {
      const count = data.text.reduce((sum, _, i) => sum + Number(fits(i)), 0);
      if (count) select.append(Object.assign(new Option(`${label} (${count})`), { fits }));
    };
    if (data.marked.length) add("matching", (i) => data.markedSet.has(i));
    for (const name of Object.keys(data.regimes).reverse()) add(name, (i) => data.regime[i] === name);
    if (data.visibility.includes("privileged")) add("privileged", (i) => data.visibility[i] === "privileged");
    select.setAttribute("aria-label", "tokens to step through");
    const step = (direction) => {
      const { fits } = select.selectedOptions[0];
      const size = data.text.length;
      for (let k = 1; k <= size; k += 1) {
        const i = (((Number(root.dataset.pin) + direction * k) % size) + size) % size;
        if (fits(i)) return goTo(i, true);
      }
      return undefined;
    };
    const button = (text, label, act, pressed) => {
      const node = make("button", pressed === undefined ? "wb-chip" : "wb-chip wb-toggle", text);
      node.type = "button";
      node.title = label;
      node.setAttribute("aria-label", label);
      if (pressed !== undefined) node.setAttribute("aria-pressed", "false");
      node.addEventListener("click", () => act(node));
      return node;
    };
    const toggle = (node) => {
      const isOn = node.getAttribute("aria-pressed") !== "true";
      node.setAttribute("aria-pressed", String(isOn));
      return isOn;
    };
    const list = stretches(data);
    const folded = list.reduce((sum, [from, to]) => sum + to - from, 0);
    const row = make("div", "wb-nav", select, button("↑", "previous such token", () => step(-1)),
      button("↓", "next such token", () => step(1)));
    if (folded) {
      row.append(button(`fold ${folded} agreed`, `fold ${folded} tokens on which all views agree within ${AGREED} nats`,
        (node) => setFolds(root, toggle(node) ? list : null), false));
    }
    row.append(button("plain text", "the answer as plain text", (node) => {
      root.toggleAttribute("data-plain", toggle(node));
      const answer = root.querySelector(".wb-answer");
      if (!root.querySelector(".wb-text")) {
        const text = make("div", "wb-text", data.answer);
        text.dir = "auto";
        answer.after(text);
      }
    }, false));
    return row;
  };

  // ---- a fragment

  window.workbenchTokens.upgradeLong = (root) => {
    const tools = root.querySelector(".wb-tools");
    if (!tools) return;
    const data = dataOf(root);
    [data.literalSet, data.breakSet, data.markedSet] = [data.literal, data.breaks, data.marked].map((list) => new Set(list));
    upgradeChunks(root, data);
    const goTo = (index, isPinned) => {
      const token = tokenAt(root, index);
      if (isPinned) pin(root, index, { byUser: true });
      token.scrollIntoView({ block: "center" });
      fillNear(root); // which moves it, as the heights of the chunks above were estimates
      token.scrollIntoView({ block: "center" });
    };
    const [overview, showScreen] = strip(root, data, goTo);
    const [plot, showPin] = chart(root, data, goTo);
    tools.append(overview, steps(root, data, goTo));
    root.querySelector(".wb-top").before(plot);
    let frame = 0;
    const update = () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        if (root.isConnected) showScreen();
        else window.removeEventListener("scroll", update, true);
      });
    };
    window.addEventListener("scroll", update, { passive: true, capture: true });
    window.addEventListener("resize", update);
    root.addEventListener("workbench:pinned", () => {
      update();
      showPin();
    });
    root.addEventListener("click", (event) => {
      const fold = event.target.closest(".wb-fold");
      if (fold) unfold(root, root.workbenchFolds.get(Number(fold.dataset.fold)));
      if (event.target.closest("button[data-bars]")) queueMicrotask(() => refill(root));
    });
    update();
  };
})();
