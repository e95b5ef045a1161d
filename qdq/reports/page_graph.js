"use strict";
// The network of the page: blocks that unfold to nodes. Ranks and rows come from Python; here they
// become places, in lines that wrap like text. Only what is in sight has elements.
(() => {
  const source = document.getElementById("graph-data");
  addEventListener("beforeprint", () => {
    for (const item of document.querySelectorAll("details")) item.open = true;
  });
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const read = (kind, row) => Object.fromEntries(data.fields[kind].map((name, i) => [name, row[i]]));
  const nodes = data.nodes.map((row, i) => {
    const node = read("node", row);
    node.inputs = node.inputs.map((input) => read("input", input));
    return Object.assign(node, { id: `n${i}`, isNode: true });
  });
  const blocks = data.blocks.map((row, i) => Object.assign(read("block", row), { id: `b${i}`, nodes: [], links: [], isOpen: false }));
  for (const node of nodes) {
    node.block = blocks[node.block];
    node.block.nodes.push(node);
  }
  for (const [start, end] of data.links) nodes[start].block.links.push([nodes[start], nodes[end]]);
  const blockLinks = data.block_links.map(([start, end]) => [blocks[start], blocks[end]]);

  const PRECISIONS = ["INT8", "FP8", "INT4", "FP16", "BF16", "FP32", "FP64", "other"];
  const HEAT = [[15, "below 15 dB"], [25, "15 to 25 dB"], [35, "25 to 35 dB"], [Infinity, "above 35 dB"]];
  const BLOCK = { w: 186, h: 74 }, NODE = { w: 142, h: 44 };
  const GAP = { x: 34, y: 12, line: 26 }, MARGIN = 18, HEAD = 30;
  const MOST_HITS = 30, LEAST_ZOOM = 0.05, MOST_ZOOM = 3;
  // Links over more columns than these are faint: a mask or a shape may lead to every layer.
  const MOST_COLUMNS = 8;
  // Below this zoom no text can be read: colours fill the boxes.
  const FAR = 0.5;

  const $ = (id) => document.getElementById(id);
  const holder = $("graph"), panel = $("node"), search = $("search"), hits = $("hits");
  let zoom = 1, size = { w: 1, h: 1 }, lines = 800, current = null, colour = "precision";
  const painted = new Map();

  const make = (name, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.append(...children);
    return element;
  };
  const html = (name, text, kind) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const pen = document.createElement("canvas").getContext("2d");
  const FONTS = { name: "600 12px system-ui, sans-serif", small: "10.5px system-ui, sans-serif" };
  // As much of a text as there is room for: the end of a name, in which names differ, or the start.
  function trim(text, room, kind = "small", isEnd = true) {
    pen.font = FONTS[kind];
    const cut = (left) => (isEnd ? "…" + text.slice(left) : text.slice(0, text.length - left) + "…");
    if (pen.measureText(text).width <= room) return text;
    let least = 0, most = text.length;
    while (least < most) {
      const middle = (least + most) >> 1;
      if (pen.measureText(cut(middle)).width <= room) most = middle;
      else least = middle + 1;
    }
    return cut(least);
  }

  const svg = make("svg", { role: "presentation" });
  const linkLayer = make("g", {}), itemLayer = make("g", {});
  svg.append(linkLayer, itemLayer);
  holder.append(svg);

  // Places columns of one rank side by side, in lines no wider than `width`; returns the size.
  function place(items, width, left, top) {
    const columns = new Map();
    for (const item of items) {
      if (!columns.has(item.rank)) columns.set(item.rank, []);
      columns.get(item.rank).push(item);
    }
    let x = 0, y = 0, widest = 0, line = [];
    const endLine = () => {
      const height = Math.max(...line.map((column) => column.h));
      for (const column of line) {
        let below = top + y + (height - column.h) / 2;
        for (const item of column.items) {
          Object.assign(item, { x: left + column.x, y: below, lineTop: top + y, lineEnd: top + y + height });
          below += item.h + GAP.y;
        }
      }
      y += height + GAP.line;
      x = 0;
      line = [];
    };
    let number = 0;
    for (const rank of [...columns.keys()].sort((a, b) => a - b)) {
      const column = columns.get(rank).sort((a, b) => a.row - b.row);
      const w = Math.max(...column.map((item) => item.w));
      const h = column.reduce((sum, item) => sum + item.h + GAP.y, -GAP.y);
      if (line.length && x + w > width) endLine();
      for (const item of column) item.column = number;
      number += 1;
      line.push({ items: column, x, h });
      x += w + GAP.x;
      widest = Math.max(widest, x - GAP.x);
    }
    if (line.length) endLine();
    return { w: widest, h: y - GAP.line };
  }

  // Sets the sizes and places of everything, in lines as wide as there is room at this zoom.
  function arrange() {
    lines = Math.max(holder.clientWidth / Math.min(zoom, 1) - 2 * MARGIN - 4, 420);
    for (const block of blocks) {
      Object.assign(block, BLOCK);
      if (!block.isOpen) continue;
      for (const node of block.nodes) Object.assign(node, NODE);
      const inner = place(block.nodes, lines - 2 * MARGIN, MARGIN, HEAD + 10);
      block.w = Math.max(inner.w + 2 * MARGIN, BLOCK.w);
      block.h = inner.h + HEAD + 10 + MARGIN;
    }
    const whole = place(blocks, lines, MARGIN, MARGIN + 6);
    size = { w: Math.max(whole.w, lines) + 2 * MARGIN, h: whole.h + 2 * MARGIN + 6 };
  }

  function layout() {
    arrange();
    clear();
    svg.setAttribute("viewBox", `0 0 ${size.w} ${size.h}`);
    svg.setAttribute("width", size.w * zoom);
    svg.setAttribute("height", size.h * zoom);
    $("zoom").textContent = `${Math.round(zoom * 100)} %`;
    paint();
  }

  function clear() {
    painted.clear();
    linkLayer.replaceChildren();
    itemLayer.replaceChildren();
  }

  // The line from one item to another: straight to the next column, else around the line of items.
  function route(a, b, dx = 0, dy = 0) {
    const x1 = a.x + a.w + dx, y1 = a.y + a.h / 2 + dy, x2 = b.x + dx, y2 = b.y + b.h / 2 + dy;
    if (a.lineTop === b.lineTop && b.column === a.column + 1) {
      const middle = (x1 + x2) / 2;
      return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
    }
    const lane = a.lineTop === b.lineTop ? a.lineTop - 8 + dy : a.lineEnd + GAP.line / 2 + dy;
    return `M${x1} ${y1}h9V${lane}H${x2 - 9}V${y2}h9`;
  }

  function paint(everything = false) {
    const sight = {
      x: holder.scrollLeft / zoom - 100, y: holder.scrollTop / zoom - 100,
      w: holder.clientWidth / zoom + 200, h: holder.clientHeight / zoom + 200,
    };
    const isSeen = (x, y, w, h) => everything || (x < sight.x + sight.w && x + w > sight.x && y < sight.y + sight.h && y + h > sight.y);
    const seen = new Map();
    for (const block of blocks) {
      if (isSeen(block.x, block.y, block.w, block.h)) seen.set(block.id, () => drawBlock(block));
      if (!block.isOpen || !seen.has(block.id)) continue;
      for (const node of block.nodes) {
        if (isSeen(block.x + node.x, block.y + node.y, node.w, node.h)) seen.set(node.id, () => drawNode(node));
      }
      block.links.forEach(([a, b], i) => addLink(seen, `${block.id}l${i}`, a, b, block.x, block.y, isSeen));
    }
    blockLinks.forEach(([a, b], i) => addLink(seen, `l${i}`, a, b, 0, 0, isSeen));
    for (const [id, element] of painted) {
      if (seen.has(id)) continue;
      element.remove();
      painted.delete(id);
    }
    for (const [id, draw] of seen) {
      if (painted.has(id)) continue;
      const element = draw();
      painted.set(id, element);
      if (!element.classList.contains("link")) itemLayer.append(element);
      else if (id[0] === "l") linkLayer.append(element);
      else itemLayer.append(element);
    }
  }

  function addLink(seen, id, a, b, dx, dy, isSeen) {
    const x = Math.min(a.x, b.x), y = Math.min(a.y, b.y, a.lineTop - 8);
    const w = Math.max(a.x + a.w, b.x + b.w) - x, h = Math.max(a.y + a.h, b.y + b.h, a.lineEnd) - y + GAP.line;
    const kind = b.column - a.column > MOST_COLUMNS ? "link faint" : "link";
    if (isSeen(x + dx, y + dy, w, h)) seen.set(id, () => make("path", { class: kind, d: route(a, b, dx, dy) }));
  }

  const heatOf = (snr) => HEAT.findIndex(([most]) => snr < most);
  const shadeOf = (node) => {
    if (colour === "precision") return paintOf(node.precision);
    return node.snr_db === null ? "var(--other)" : `var(--heat${heatOf(node.snr_db)})`;
  };
  // Other types, such as UINT8, are none that TensorRT computes in.
  const paintOf = (precision) => `var(--${PRECISIONS.includes(precision) ? precision : "odd"})`;
  // The nodes with weights or pairs; all of them where there are none.
  const central = (block) => {
    const some = block.nodes.filter((node) => (colour === "error" ? node.snr_db !== null : node.is_central));
    return some.length ? some : block.nodes;
  };
  const tally = (list, key) => {
    const counts = new Map();
    for (const item of list) counts.set(key(item), (counts.get(key(item)) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]);
  };
  const summarize = (block) => tally(block.nodes.filter((node) => node.is_central), (node) => node.precision)
    .map(([name, number]) => `${number} ${name}`).join(", ");

  function startItem(item, x, y, text) {
    const group = make("g", { class: "item" + (item === current ? " current" : ""), id: item.id, role: "treeitem", "aria-level": item.isNode ? 2 : 1, transform: `translate(${x} ${y})`, "aria-label": text }, make("title", {}, text));
    if (item === current) group.setAttribute("aria-selected", "true");
    group.addEventListener("click", (event) => {
      event.stopPropagation();
      if (!item.isNode) toggle(item);
      else select(item);
    });
    return group;
  }

  function drawBlock(block) {
    const title = `${block.name}: ${count(block.nodes.length, "node")}${summarize(block) ? ", " + summarize(block) : ""}`;
    const group = startItem(block, block.x, block.y, title);
    group.setAttribute("aria-expanded", String(block.isOpen));
    group.append(make("rect", { class: block.isOpen ? "open" : "box", width: block.w, height: block.h, rx: 6 }));
    group.append(make("path", { class: "arrow", d: block.isOpen ? "M9 12h8l-4 6z" : "M10 11v8l6-4z" }));
    if (zoom < FAR && !block.isOpen) {
      group.append(...drawBar(block, 0, 0, block.w, block.h));
      return group;
    }
    const [first, last] = block.name.split(" … "), room = block.w - 32;
    if (block.isOpen) {
      group.append(make("text", { class: "name", x: 22, y: 20 }, trim(block.name, room, "name")));
      return group;
    }
    group.append(make("text", { class: "name", x: 22, y: 20 }, trim(first, room, "name")));
    if (last) group.append(make("text", { class: "small", x: 22, y: 34 }, trim(`to ${last}`, room)));
    const about = summarize(block);
    group.append(make("text", { class: "small", x: 12, y: last ? 50 : 42 }, trim(`${count(block.nodes.length, "node")}${about ? ": " + about : ""}`, block.w - 20)));
    group.append(...drawBar(block, 12, 58, block.w - 24, 8));
    return group;
  }

  // The shares of the colours in a block, side by side.
  function drawBar(block, left, y, width, height) {
    const list = central(block), kind = colour === "precision" && !list[0].is_central ? "light" : "";
    let x = left;
    return tally(list, shadeOf).map(([shade, number]) => {
      const w = (width * number) / list.length;
      const part = make("rect", { x, y, width: w, height, style: `fill:${shade}`, class: kind });
      x += w;
      return part;
    });
  }

  function drawNode(node) {
    const block = node.block, kind = node.precision === "other" ? "" : node.precision;
    const group = startItem(node, block.x + node.x, block.y + node.y, `${node.name}: ${node.operator}${kind ? ", " + kind : ""}`);
    group.append(make("rect", { class: "box", width: node.w, height: node.h, rx: 5 }));
    const isLight = colour === "precision" && !node.is_central;
    group.append(make("rect", { width: zoom < FAR ? node.w : 6, height: node.h, rx: 3, style: `fill:${shadeOf(node)}`, class: isLight ? "light" : "" }));
    if (zoom < FAR) return group;
    group.append(make("text", { class: "name", x: 13, y: 18 }, trim(node.operator, node.w - (kind ? 50 : 20), "name", false)));
    if (kind) group.append(make("text", { class: "small", x: node.w - 7, y: 18, "text-anchor": "end" }, kind));
    group.append(make("text", { class: "small", x: 13, y: 34 }, trim(node.name, node.w - 20)));
    if (node.is_entry) group.append(make("circle", { class: "port", cx: -5, cy: node.h / 2, r: 2.5 }));
    if (node.is_exit) group.append(make("circle", { class: "port", cx: node.w + 5, cy: node.h / 2, r: 2.5 }));
    return group;
  }

  const spotOf = (item) => (item.isNode ? { x: item.block.x + item.x, y: item.block.y + item.y } : item);

  function reveal(item) {
    const spot = spotOf(item), h = item.isOpen ? HEAD : item.h;
    const left = spot.x * zoom, top = spot.y * zoom, right = (spot.x + item.w) * zoom, end = (spot.y + h) * zoom;
    if (left < holder.scrollLeft || right > holder.scrollLeft + holder.clientWidth) holder.scrollLeft = left - holder.clientWidth / 3;
    if (top < holder.scrollTop || end > holder.scrollTop + holder.clientHeight) holder.scrollTop = top - holder.clientHeight / 3;
  }

  function select(item) {
    const before = current;
    current = item;
    reveal(item);
    for (const changed of [before, item]) {
      const element = changed && painted.get(changed.id);
      if (!element) continue;
      element.remove();
      painted.delete(changed.id);
    }
    // A block that is drawn again must not cover its nodes.
    if ((before && before.isOpen) || item.isOpen) clear();
    paint();
    holder.setAttribute("aria-activedescendant", item.id);
    if (item.isNode) describeNode(item);
    else describeBlock(item);
  }

  function toggle(block) {
    block.isOpen = !block.isOpen;
    layout();
    select(block);
  }

  function foldAll(isOpen) {
    for (const block of blocks) block.isOpen = isOpen;
    if (!isOpen) zoom = 1;
    current = null;
    holder.removeAttribute("aria-activedescendant");
    layout();
  }

  // Zooms, and keeps the item that is shown at a height of the view where it is.
  function setZoom(next, height = 0) {
    const middle = (holder.scrollTop + height) / zoom, left = holder.scrollLeft / zoom;
    const fixed = current || blocks.find((block) => block.y + block.h > middle) || blocks[0];
    const above = spotOf(fixed).y * zoom - holder.scrollTop;
    zoom = Math.min(Math.max(next, LEAST_ZOOM), MOST_ZOOM);
    layout();
    holder.scrollTo(left * zoom, spotOf(fixed).y * zoom - above);
    paint();
  }

  // Zooms out until everything is in sight: narrower at each step, since the lines get longer.
  function fit() {
    const height = Math.max(holder.clientHeight, 200);
    zoom = 1;
    for (arrange(); size.h * zoom > height && zoom > LEAST_ZOOM; arrange()) zoom *= 0.92;
    layout();
    holder.scrollTo(0, 0);
  }

  function chip(name) {
    const element = html("span", name, "chip " + name);
    element.style.background = paintOf(name);
    return element;
  }

  function describeBlock(block) {
    panel.replaceChildren(html("h3", block.name));
    panel.append(html("p", `${count(block.nodes.length, "node")}; with weights or a pair: ${summarize(block) || "none"}`));
    const operators = html("ul");
    for (const [name, number] of tally(block.nodes, (node) => node.operator)) operators.append(html("li", `${number} ${name}`));
    panel.append(operators);
    const button = html("button", block.isOpen ? "Fold" : "Show its nodes");
    button.type = "button";
    button.addEventListener("click", () => toggle(block));
    panel.append(button);
  }

  function describeNode(node) {
    panel.replaceChildren(html("h3", node.name));
    const line = html("p", node.operator + " ");
    if (node.precision !== "other") line.append(chip(node.precision));
    panel.append(line);
    if (node.snr_db !== null) panel.append(html("p", `${node.snr_db.toFixed(1)} dB ${data.snr_title}`));
    if (node.notes.length) {
      const notes = html("ul");
      for (const note of node.notes) notes.append(html("li", note));
      panel.append(notes);
    }
    if (!node.inputs.length) panel.append(html("p", "No rule is about its inputs: it computes in the type that its neighbors leave it.", "hint"));
    for (const input of node.inputs) panel.append(describeInput(input));
  }

  function describeInput(input) {
    const part = html("div", undefined, "input");
    const head = html("p", undefined);
    head.append(html("b", `input ${input.slot}: `), input.tensor);
    part.append(head);
    const decision = html("p", input.type ? `quantized: ${input.pair} ` : "stays in float ");
    if (input.type) decision.append(chip(input.type));
    part.append(decision);
    if (input.reason) part.append(html("p", input.reason));
    for (const name of input.because) {
      const rule = data.rules[name];
      part.append(html("p", rule ? `rule ${name}: ${rule.says}` : `because: ${name}`));
      if (!rule) continue;
      if (rule.because) part.append(html("p", rule.because, "hint"));
      if (/^https?:\/\/\S+$/.test(rule.see)) {
        const link = html("a", "source");
        link.href = rule.see;
        link.rel = "noreferrer noopener";
        part.append(link);
      }
    }
    const range = input.type && Object.hasOwn(data.histograms, input.tensor) && data.histograms[input.tensor];
    if (range) part.append(drawRange(...range));
    return part;
  }

  function drawRange(largest, amax, counts) {
    const end = Math.max(largest, amax), w = (280 * largest) / end / counts.length;
    const tallest = Math.log1p(Math.max(...counts)) || 1;
    const drawing = make("svg", { viewBox: "0 0 280 60", role: "img", "aria-label": `largest ${largest.toPrecision(4)}, amax ${amax.toPrecision(4)}` });
    counts.forEach((number, i) => {
      const h = (56 * Math.log1p(number)) / tallest;
      drawing.append(make("rect", { class: i * w < (280 * amax) / end ? "bin" : "bin clipped", x: i * w, y: 60 - h, width: Math.max(w - 0.5, 0.3), height: h }));
    });
    const x = Math.min((280 * amax) / end, 279);
    drawing.append(make("line", { class: "amax", x1: x, x2: x, y1: 0, y2: 60 }));
    const text = html("p", `largest ${largest.toPrecision(4)}, amax ${amax.toPrecision(4)}`, "hint");
    const both = html("div");
    both.append(drawing, text);
    return both;
  }

  function drawLegend() {
    const shown = [...new Set(nodes.map((node) => node.precision))].filter((name) => name !== "other");
    shown.sort((a, b) => PRECISIONS.indexOf(a) - PRECISIONS.indexOf(b));
    const list = colour === "error" ? HEAT.map(([, text], i) => [`var(--heat${i})`, text]) : shown.map((name) => [paintOf(name), name]);
    list.push(["var(--other)", colour === "error" ? "not measured" : "no float"]);
    $("legend").replaceChildren(...list.map(([paint, text]) => {
      const entry = html("span"), mark = html("i");
      mark.style.background = paint;
      entry.append(mark, text);
      return entry;
    }));
    if (colour === "error") $("legend").append(html("span", `signal-to-noise ${data.snr_title}`));
    else $("legend").append(html("span", "pale: neither weights nor a pair, the node follows its neighbors"));
  }

  let listed = [], active = -1;
  function find() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = words.length ? nodes.filter((node) => {
      const text = `${node.name} ${node.operator} ${node.precision}`.toLowerCase();
      return words.every((word) => text.includes(word));
    }) : [];
    listed = matches.slice(0, MOST_HITS);
    active = listed.length ? 0 : -1;
    const entries = listed.map((node, i) => {
      const entry = html("li", node.name + " ");
      entry.id = `hit${i}`;
      entry.setAttribute("role", "option");
      entry.append(html("small", `${node.operator} ${node.precision === "other" ? "" : node.precision}`));
      entry.addEventListener("mousedown", (event) => { event.preventDefault(); go(node); });
      return entry;
    });
    if (words.length && matches.length !== listed.length) entries.push(html("li", `and ${matches.length - listed.length} more`, "hint"));
    if (words.length && !matches.length) entries.push(html("li", "no node has this name", "hint"));
    hits.replaceChildren(...entries);
    hits.hidden = !words.length;
    mark();
  }

  function mark() {
    [...hits.children].forEach((entry, i) => entry.setAttribute("aria-selected", String(i === active)));
    search.setAttribute("aria-expanded", String(!hits.hidden));
    if (active >= 0) {
      search.setAttribute("aria-activedescendant", `hit${active}`);
      hits.children[active].scrollIntoView({ block: "nearest" });
    } else search.removeAttribute("aria-activedescendant");
  }

  function go(node) {
    hits.hidden = true;
    mark();
    if (!node.block.isOpen) {
      node.block.isOpen = true;
      layout();
    }
    if (zoom < FAR) setZoom(1);
    select(node);
    holder.focus({ preventScroll: true });
    holder.scrollIntoView({ block: "nearest" });
  }

  function step(offset) {
    const items = [];
    for (const block of blocks) {
      items.push(block);
      if (block.isOpen) items.push(...[...block.nodes].sort((a, b) => a.rank - b.rank || a.row - b.row));
    }
    const next = items.indexOf(current) + offset;
    select(items[Math.min(Math.max(current ? next : 0, 0), items.length - 1)]);
  }

  const KEYS = {
    ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
    Enter: () => current && !current.isNode && toggle(current), " ": () => current && !current.isNode && toggle(current),
    Escape: () => { const block = current && (current.block || current); if (block && block.isOpen) toggle(block); },
    Home: () => select(blocks[0]), End: () => select(blocks[blocks.length - 1]),
    "+": () => setZoom(zoom * 1.25), "=": () => setZoom(zoom * 1.25), "-": () => setZoom(zoom / 1.25), 0: fit,
  };
  holder.addEventListener("keydown", (event) => {
    const action = !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  holder.addEventListener("scroll", () => requestAnimationFrame(() => paint()), { passive: true });
  holder.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const frame = holder.getBoundingClientRect();
    setZoom(zoom * Math.exp(-event.deltaY / 300), event.clientY - frame.top);
  }, { passive: false });
  search.addEventListener("input", find);
  search.addEventListener("blur", () => { hits.hidden = true; mark(); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (hits.hidden) find();
      if (listed.length) active = (active + (event.key === "ArrowDown" ? 1 : listed.length - 1)) % listed.length;
      mark();
    } else if (event.key === "Enter" && active >= 0) go(listed[active]);
    else if (event.key === "Escape") { hits.hidden = true; mark(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    search.focus();
  });
  $("unfold").addEventListener("click", () => foldAll(true));
  $("fold").addEventListener("click", () => foldAll(false));
  $("larger").addEventListener("click", () => setZoom(zoom * 1.25));
  $("smaller").addEventListener("click", () => setZoom(zoom / 1.25));
  $("fit").addEventListener("click", fit);
  $("colour").addEventListener("change", (event) => {
    colour = event.target.value;
    drawLegend();
    clear();
    paint();
  });
  $("colouring").hidden = !nodes.some((node) => node.snr_db !== null);
  addEventListener("resize", layout);
  addEventListener("beforeprint", () => paint(true));
  addEventListener("afterprint", () => { clear(); paint(); });
  drawLegend();
  layout();
})();
