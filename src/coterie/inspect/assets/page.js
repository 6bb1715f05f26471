"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const heat = at("heat"), bars = at("bars"), canvas = at("pairs"), strip = at("strip");
  const NEVER = -127, UNSAID = -128, PER_OCTAVE = 16, STEPS = 33, SVG = "http://www.w3.org/2000/svg";
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  let place = data.shown, expert = null;

  const times = (r) => (r < 0.995 ? r.toFixed(2) : r < 9.95 ? r.toFixed(1) : Math.round(r).toLocaleString("en")) + "×";
  const count = (n) => n.toLocaleString("en");
  const relative = (layer, e) => (layer.counts[e] * layer.counts.length) / (data.tokens * layer.k);
  const made = (name, text, parent) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const words = (layer, e, parent) => layer.top[e].forEach((w) => made("code", data.words[w], parent));

  // Where the script runs, its own box replaces the titles.
  document.documentElement.classList.add("live");
  document.querySelectorAll("svg title").forEach((title) => title.remove());
  const tip = made("div", undefined, document.body);
  tip.id = "tip";
  tip.hidden = true;
  const hide = () => { tip.hidden = true; };
  const show = (event, fill) => {
    tip.replaceChildren();
    fill(tip);
    tip.hidden = false;
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 16 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, below ? event.clientY + 16 : event.clientY - tip.offsetHeight - 10)}px`;
  };
  const about = (layer, e) => (box) => {
    made("b", `layer ${layer.layer}, expert ${e}`, box);
    const n = layer.counts[e];
    made("div", n === 0 ? "no token" : `${count(n)} tokens, ${times(relative(layer, e))} uniform`, box);
    made("div", `${(100 * layer.weights[e]).toFixed(1)} % of the layer's routing weight`, box);
    if (layer.top[e].length) words(layer, e, made("div", "takes ", box));
  };

  const cellOf = (target) => {
    const row = target.closest && target.closest("g[data-layer]");
    if (!row || target.tagName !== "rect") return null;
    const where = data.layers.findIndex((layer) => layer.layer === Number(row.dataset.layer));
    return [where, Array.prototype.indexOf.call(row.children, target)];
  };
  heat.addEventListener("mousemove", (event) => {
    const cell = cellOf(event.target);
    if (cell) show(event, about(data.layers[cell[0]], cell[1])); else hide();
  });
  heat.addEventListener("click", (event) => {
    const cell = cellOf(event.target);
    if (cell) choose(cell[0], cell[1]);
  });
  const outline = document.createElementNS(SVG, "rect");
  outline.setAttribute("class", "chosen");
  heat.append(outline);

  const barOf = (event) => {
    const box = bars.getBoundingClientRect(), n = data.layers[place].counts.length;
    return Math.max(0, Math.min(n - 1, Math.floor(((event.clientX - box.left) / box.width) * n)));
  };
  bars.addEventListener("mousemove", (event) => show(event, about(data.layers[place], barOf(event))));
  bars.addEventListener("click", (event) => choose(place, barOf(event)));
  [heat, bars, canvas, strip].forEach((node) => node.addEventListener("mouseleave", hide));

  function drawBars(layer) {
    const n = layer.counts.length, width = 1000 / n, gap = Math.min(2, width * 0.15), height = 150;
    const loads = layer.counts.map((_, e) => relative(layer, e)), most = Math.max(1, ...loads);
    bars.replaceChildren(...loads.map((r, e) => {
      const bar = document.createElementNS(SVG, "rect");
      const box = { x: e * width, y: height * (1 - r / most), width: width - gap, height: (height * r) / most };
      Object.entries(box).forEach(([key, value]) => bar.setAttribute(key, value));
      if (e === expert) bar.setAttribute("class", "on");
      return bar;
    }));
    const line = document.createElementNS(SVG, "line"), y = height * (1 - 1 / most);
    Object.entries({ x1: 0, x2: 1000, y1: y, y2: y }).forEach(([key, value]) => line.setAttribute(key, value));
    bars.append(line);
    at("uniform").style.top = `${y}px`;
    at("last").textContent = n - 1;
  }

  // Row by row above the diagonal: where the pair (i, j), i < j, stands.
  const pairAt = (i, j, n) => (i < j ? i * n - (i * (i + 1)) / 2 + j - i - 1 : pairAt(j, i, n));
  const rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
  function drawPairs(layer) {
    const n = layer.counts.length, cell = Math.max(4, Math.round(840 / n));
    const lift = new Int8Array(bytes(layer.lift).buffer);
    const steps = [...document.querySelectorAll(".bar i")].map((i) => rgb(getComputedStyle(i).backgroundColor));
    const style = getComputedStyle(document.documentElement);
    const paint = canvas.getContext("2d");
    canvas.width = canvas.height = n * cell;
    paint.fillStyle = style.getPropertyValue("--paper");
    paint.fillRect(0, 0, n * cell, n * cell);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        const value = i === j ? UNSAID : lift[pairAt(i, j, n)];
        if (value === UNSAID) { hatch(paint, i * cell, j * cell, cell, style.getPropertyValue("--line")); continue; }
        const t = Math.max(-1, Math.min(1, value / PER_OCTAVE / data.octaves));
        const colour = steps[Math.round(((t + 1) / 2) * (STEPS - 1))];
        paint.fillStyle = value === NEVER ? style.getPropertyValue("--none") : `rgb(${colour.join(",")})`;
        paint.fillRect(i * cell, j * cell, cell, cell);
      }
    }
  }
  function hatch(paint, x, y, cell, colour) {
    paint.fillStyle = colour;
    for (let d = 0; d < cell; d++) paint.fillRect(x + d, y + cell - 1 - d, 1, 1);
  }
  canvas.addEventListener("mousemove", (event) => {
    const layer = data.layers[place], n = layer.counts.length, box = canvas.getBoundingClientRect();
    const i = Math.min(n - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * n)));
    const j = Math.min(n - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * n)));
    if (i === j) { hide(); return; }
    const value = new Int8Array(bytes(layer.lift).buffer)[pairAt(i, j, n)];
    const said = value === UNSAID ? "too few tokens to say" : value === NEVER ? "never together"
      : `${times(2 ** (value / PER_OCTAVE))} what their loads give`;
    show(event, (tipBox) => { made("b", `experts ${i} and ${j}`, tipBox); made("div", said, tipBox); });
  });

  function fillTables(layer) {
    at("closest").replaceChildren(...layer.pairs.map(([a, b, n, usual]) => {
      const row = made("tr");
      [`${a} + ${b}`, count(n), usual.toFixed(1), times(usual > 0 ? n / usual : 1)].forEach((text) => made("td", text, row));
      return row;
    }));
    at("experts").replaceChildren(...layer.counts.map((n, e) => {
      const row = made("tr");
      made("th", e, row);
      [count(n), times(relative(layer, e)), `${(100 * layer.weights[e]).toFixed(1)} %`].forEach((text) => made("td", text, row));
      words(layer, e, made("td", undefined, row));
      row.classList.toggle("on", e === expert);
      row.addEventListener("click", () => choose(place, e));
      return row;
    }));
  }

  function paintStrip(layer) {
    const ids = new Uint16Array(bytes(layer.ids).buffer), shares = bytes(layer.shares), k = layer.k;
    strip.classList.toggle("one", expert !== null);
    [...strip.children].forEach((span, t) => {
      const own = Array.from({ length: k }, (_, s) => [ids[t * k + s], shares[t * k + s] / 255]);
      own.sort((a, b) => b[1] - a[1]);
      const [e, w] = expert === null ? own[0] : own.find(([id]) => id === expert) || [expert, null];
      span.style.setProperty("--e", e);
      span.style.setProperty("--w", w === null ? 0 : w.toFixed(3));
      span.classList.toggle("far", w === null);
      span.classList.toggle("dark", expert !== null && w !== null && w > 0.5);
      span.own = own;
      span.removeAttribute("title");
    });
  }
  strip.addEventListener("mousemove", (event) => {
    const span = event.target.closest("#strip span");
    if (!span) { hide(); return; }
    show(event, (box) => {
      made("code", span.textContent, box);
      span.own.forEach(([e, w]) => made("div", `expert ${e}: ${(100 * w).toFixed(0)} %`, box));
    });
  });

  function choose(newPlace, newExpert) {
    place = newPlace;
    const layer = data.layers[place], n = layer.counts.length;
    expert = newExpert === null || newExpert >= n ? null : newExpert;
    at("number").textContent = layer.layer + (expert === null ? "" : `, expert ${expert}`);
    at("pick-layer").value = String(place);
    const all = new Option("all", "");
    at("pick-expert").replaceChildren(all, ...layer.counts.map((_, e) => new Option(e, e)));
    at("pick-expert").value = expert === null ? "" : String(expert);
    const row = heat.querySelector(`g[data-layer="${layer.layer}"]`), first = row.children[expert || 0];
    const last = row.children[expert === null ? n - 1 : expert];
    const x = Number(first.getAttribute("x")), right = Number(last.getAttribute("x")) + Number(last.getAttribute("width"));
    const box = { x, y: 0, width: right - x, height: first.getAttribute("height") };
    Object.entries(box).forEach(([key, value]) => outline.setAttribute(key, value));
    outline.setAttribute("transform", row.getAttribute("transform"));
    drawBars(layer);
    drawPairs(layer);
    fillTables(layer);
    const chosen = at("experts").querySelector(".on"), around = at("experts").closest(".tall");
    if (chosen) around.scrollTop = chosen.offsetTop - around.clientHeight / 2;
    paintStrip(layer);
  }
  at("pick-layer").addEventListener("change", (event) => choose(Number(event.target.value), expert));
  at("pick-expert").addEventListener("change", (event) => choose(place, event.target.value === "" ? null : Number(event.target.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawPairs(data.layers[place]));
  choose(place, null);
})();
