"use strict";
// The map of the embeddings: a canvas with a grid as spatial index. Everything that comes from the user's folder is set as text.
(() => {
  const TYPES = { f4: Float32Array, i2: Int16Array, i4: Int32Array };
  // Ten colours that colour-blind readers tell apart (Petroff 2021); after ten, the shape changes too.
  const PALETTE = ["#3f90da", "#e76300", "#2f9e77", "#bd1f01", "#832db6", "#a96b59", "#d69b00", "#92a0a4", "#b9ac70", "#5ab4c9"];
  // Viridis, eight steps.
  const RAMP = ["#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#8ccb3f", "#c3cf2b", "#e8cf1a"];
  const RIGHT = "#3f90da", WRONG = "#e76300", UNKNOWN = "#92a0a4";
  const PICTURE_SPACE = 26, REACH = 14, NEAR_CELLS = 64;

  const unpack = ({ type, data }) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    return new TYPES[type](bytes.buffer);
  };
  const numberText = (v) => v.toFixed(3).replace("-", "\u2212");
  const element = (name, kind, text) => {
    const node = document.createElement(name);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  class ImageMap {
    constructor(figure) {
      this.figure = figure;
      const data = JSON.parse(figure.querySelector("script.data").textContent);
      Object.assign(this, { n: data.n, classes: data.classes, splits: data.splits, paths: data.paths, sheet: data.sheet });
      this.columns = Object.fromEntries(Object.entries(data.columns).map(([name, column]) => [name, unpack(column)]));
      this.k = this.columns.neighbours ? this.columns.neighbours.length / this.n : 0;
      this.canvas = figure.querySelector(".plane canvas");
      this.context = this.canvas.getContext("2d");
      this.card = figure.querySelector(".card");
      this.live = figure.querySelector("[aria-live]");
      this.sheets = [...figure.querySelectorAll("img.sheet")];
      this.hover = -1; this.pinned = -1; this.hidden = new Set(); this.pointers = new Map();
      this.listen();
      this.lay(figure.querySelector("[data-layout]").dataset.layout);
      this.paint(figure.querySelector("[data-colour]")?.dataset.colour || "split");
      new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
      Promise.allSettled(this.sheets.map((s) => s.decode())).then(() => { this.draw(); figure.dataset.ready = "true"; });
    }

    // --- What is shown -------------------------------------------------------------------------------------------------------------

    lay(name) {
      this.x = this.columns[`${name}_x`]; this.y = this.columns[`${name}_y`];
      this.press("layout", name);
      let [a, b, c, d] = [Infinity, -Infinity, Infinity, -Infinity];
      for (let i = 0; i < this.n; i++) { a = Math.min(a, this.x[i]); b = Math.max(b, this.x[i]); c = Math.min(c, this.y[i]); d = Math.max(d, this.y[i]); }
      this.bounds = [a, c, Math.max(b - a, 1e-9), Math.max(d - c, 1e-9)];
      this.index();
      this.fit();
    }

    index() {
      this.cells = Array.from({ length: NEAR_CELLS * NEAR_CELLS }, () => []);
      for (let i = 0; i < this.n; i++) this.cells[this.cell(this.x[i], 0) + NEAR_CELLS * this.cell(this.y[i], 1)].push(i);
    }

    cell(value, axis) {
      return Math.min(NEAR_CELLS - 1, Math.max(0, Math.floor((value - this.bounds[axis]) / this.bounds[axis + 2] * NEAR_CELLS)));
    }

    paint(name) {
      this.colour = name; this.hidden.clear();
      this.press("colour", name);
      [this.group, this.names, this.colours] = this.groups(name);
      this.legend();
      this.draw();
    }

    // What to colour by: the group of each image, the groups' names and colours.
    groups(name) {
      const c = this.columns, cycle = (count) => Array.from({ length: count }, (_, i) => PALETTE[i % PALETTE.length]);
      if (name === "label") {
        const all = [...this.classes, "not labelled"];
        return [Array.from(c.label, (l) => l < 0 ? this.classes.length : l), all, [...cycle(this.classes.length), UNKNOWN]];
      }
      if (name === "cluster") {
        const count = c.cluster.reduce((a, b) => Math.max(a, b), 0) + 1;
        return [Array.from(c.cluster), Array.from({ length: count }, (_, i) => `cluster ${i + 1}`), cycle(count)];
      }
      if (name === "correct") return [Array.from(c.correct, (v) => v < 0 ? 2 : 1 - v), ["neighbours vote right", "neighbours vote wrong", "not labelled"], [RIGHT, WRONG, UNKNOWN]];
      if (name === "certainty") return this.eighths(c.certainty);
      return [Array.from(c.split), this.splits, cycle(this.splits.length)];
    }

    // Eight groups as large as each other, from the least to the most certain.
    eighths(values) {
      const order = Array.from(values.keys()).sort((i, j) => values[i] - values[j]), group = new Array(this.n), edges = RAMP.map(() => [Infinity, -Infinity]);
      order.forEach((i, place) => {
        const g = Math.floor(place * RAMP.length / this.n), v = values[i];
        group[i] = g; edges[g] = [Math.min(edges[g][0], v), Math.max(edges[g][1], v)];
      });
      return [group, edges.map(([low, high]) => low <= high ? `${numberText(low)} to ${numberText(high)}` : ""), RAMP];
    }

    legend() {
      const box = this.figure.querySelector(".filters"), count = new Array(this.names.length).fill(0);
      for (const g of this.group) count[g]++;
      box.replaceChildren(...this.names.map((name, g) => [name, g]).filter(([, g]) => count[g]).map(([name, g]) => {
        const button = element("button"), key = element("canvas"), text = element("span", "", `${name} (${count[g].toLocaleString("en")})`);
        button.type = "button"; button.title = "press to hide or show"; button.setAttribute("aria-pressed", "true");
        key.width = key.height = 24;
        const pen = key.getContext("2d");
        pen.fillStyle = this.colours[g]; pen.beginPath(); this.shape(pen, 12, 12, 10, g); pen.fill();
        button.append(key, text);
        button.addEventListener("click", () => {
          if (!this.hidden.delete(g)) this.hidden.add(g);
          button.setAttribute("aria-pressed", String(!this.hidden.has(g)));
          this.draw();
        });
        return button;
      }));
    }

    press(kind, name) {
      for (const b of this.figure.querySelectorAll(`button[data-${kind}]`)) b.setAttribute("aria-pressed", String(b.dataset[kind] === name));
    }

    // --- View ----------------------------------------------------------------------------------------------------------------------

    resize() {
      const box = this.canvas.parentElement, before = this.width;
      if (!box.clientWidth) return;
      this.ratio = Math.min(2, devicePixelRatio || 1);
      [this.width, this.height] = [box.clientWidth, box.clientHeight];
      this.canvas.width = this.width * this.ratio; this.canvas.height = this.height * this.ratio;
      if (!before) this.fit(); else this.draw();
    }

    fit() {
      if (!this.width) return;
      const [left, top, wide, tall] = this.bounds, margin = 24;
      this.scale = Math.min((this.width - 2 * margin) / wide, (this.height - 2 * margin) / tall);
      this.least = this.scale;
      this.at = [this.width / 2 - (left + wide / 2) * this.scale, this.height / 2 + (top + tall / 2) * this.scale];
      this.draw();
    }

    place(i) { return [this.at[0] + this.x[i] * this.scale, this.at[1] - this.y[i] * this.scale]; }

    zoom(factor, x = this.width / 2, y = this.height / 2) {
      const scale = Math.min(this.least * 200, Math.max(this.least * 0.5, this.scale * factor)), f = scale / this.scale;
      this.at = [x - (x - this.at[0]) * f, y - (y - this.at[1]) * f];
      this.scale = scale;
      this.draw();
    }

    pan(dx, dy) { this.at = [this.at[0] + dx, this.at[1] + dy]; this.draw(); }

    // The nearest shown image within reach (pixels) of a place of the canvas, by the grid; -1 where none is.
    nearest(px, py, reach = REACH) {
      const x = (v) => (v - this.at[0]) / this.scale, y = (v) => (this.at[1] - v) / this.scale;
      let best = -1, least = reach * reach;
      for (let cy = this.cell(y(py + reach), 1); cy <= this.cell(y(py - reach), 1); cy++) for (let cx = this.cell(x(px - reach), 0); cx <= this.cell(x(px + reach), 0); cx++) {
        for (const i of this.cells[cx + NEAR_CELLS * cy]) {
          const [qx, qy] = this.place(i), d = (qx - px) ** 2 + (qy - py) ** 2;
          if (d < least && !this.hidden.has(this.group[i])) { best = i; least = d; }
        }
      }
      return best;
    }

    // --- Drawing -------------------------------------------------------------------------------------------------------------------

    draw() {
      if (this.waiting || !this.width || !this.group) return;
      this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.redraw(); });
    }

    redraw() {
      const pen = this.context, shown = [];
      pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      pen.clearRect(0, 0, this.width, this.height);
      for (let i = 0; i < this.n; i++) {
        const [x, y] = this.place(i);
        if (x > -30 && y > -30 && x < this.width + 30 && y < this.height + 30 && !this.hidden.has(this.group[i])) shown.push(i);
      }
      const pictures = this.sheets.length && shown.length && this.width * this.height / shown.length > PICTURE_SPACE ** 2 * 3;
      if (pictures) this.pictures(shown); else this.points(shown);
      this.marks();
      this.figure.dataset.drawn = shown.length;
    }

    // Ten thousand stamps are drawn many times faster than ten thousand arcs are filled.
    points(shown) {
      const pen = this.context, crowd = this.n > 4000 ? 0.9 : 1.25;
      const r = Math.round(4 * Math.max(1.6, Math.min(5, 2.1 * Math.sqrt(this.scale / this.least) * crowd))) / 4;
      const stamps = this.colours.map((colour, g) => this.stamp(colour, r, g)), half = Math.ceil(r * 1.4) + 1;
      for (const i of shown) { const [x, y] = this.place(i); pen.drawImage(stamps[this.group[i]], x - half, y - half, 2 * half, 2 * half); }
    }

    stamp(colour, r, g) {
      const half = Math.ceil(r * 1.4) + 1, canvas = element("canvas"), side = canvas.width = canvas.height = 2 * half * this.ratio, pen = canvas.getContext("2d");
      pen.globalAlpha = 0.85; pen.fillStyle = colour;
      pen.beginPath(); this.shape(pen, side / 2, side / 2, r * this.ratio, g); pen.fill();
      return canvas;
    }

    // Where there is room for them, the images themselves, framed in their colour.
    pictures(shown) {
      const pen = this.context, half = PICTURE_SPACE / 2;
      pen.imageSmoothingEnabled = this.sheet.side > 40;
      for (const i of shown) {
        const [x, y] = this.place(i);
        pen.fillStyle = this.colours[this.group[i]];
        pen.fillRect(x - half - 2, y - half - 2, PICTURE_SPACE + 4, PICTURE_SPACE + 4);
        this.image(pen, i, x - half, y - half, PICTURE_SPACE);
      }
    }

    shape(pen, x, y, r, g) {
      const kind = Math.floor(g / PALETTE.length) % 3;
      if (kind === 1) pen.rect(x - r, y - r, 2 * r, 2 * r);
      else if (kind === 2) { pen.moveTo(x, y - 1.3 * r); pen.lineTo(x + 1.2 * r, y + r); pen.lineTo(x - 1.2 * r, y + r); pen.closePath(); }
      else { pen.moveTo(x + r, y); pen.arc(x, y, r, 0, 2 * Math.PI); }
    }

    marks() {
      const pen = this.context, ink = getComputedStyle(document.body).color;
      const chosen = this.hover >= 0 ? this.hover : this.pinned;
      pen.strokeStyle = ink;
      if (chosen >= 0) {
        const [x, y] = this.place(chosen);
        pen.lineWidth = 1; pen.globalAlpha = 0.6; pen.beginPath();
        for (const j of this.near(chosen)) { const [a, b] = this.place(j); pen.moveTo(x, y); pen.lineTo(a, b); }
        pen.stroke(); pen.globalAlpha = 1;
      }
      pen.lineWidth = 2;
      for (const i of new Set([this.pinned, this.hover])) if (i >= 0) { const [x, y] = this.place(i); pen.beginPath(); pen.arc(x, y, 9, 0, 2 * Math.PI); pen.stroke(); }
      if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) {
        const [x, y] = [this.width / 2, this.height / 2];
        pen.lineWidth = 1; pen.beginPath(); pen.moveTo(x - 8, y); pen.lineTo(x + 8, y); pen.moveTo(x, y - 8); pen.lineTo(x, y + 8); pen.stroke();
      }
    }

    image(pen, i, x, y, side) {
      const s = this.sheet, sheet = this.sheets[Math.floor(i / s.per_sheet)], place = i % s.per_sheet;
      if (!sheet || !sheet.complete || !sheet.naturalWidth) return;
      pen.drawImage(sheet, place % s.per_row * s.side, Math.floor(place / s.per_row) * s.side, s.side, s.side, x, y, side, side);
    }

    thumbnail(i, side) {
      const canvas = element("canvas"), pen = (canvas.width = canvas.height = side * 2, canvas.getContext("2d"));
      pen.imageSmoothingEnabled = this.sheet.side > 40;
      this.image(pen, i, 0, 0, side * 2);
      canvas.setAttribute("aria-hidden", "true");
      return canvas;
    }

    // --- The selected image -------------------------------------------------------------------------------------------------------

    near(i) {
      const near = [];
      for (let j = i * this.k; j < (i + 1) * this.k; j++) if (this.columns.neighbours[j] >= 0) near.push(this.columns.neighbours[j]);
      return near;
    }

    label(i) { const l = this.columns.label[i]; return l < 0 ? "not labelled" : this.classes[l]; }

    describe(i) {
      const c = this.columns, lines = [`label ${this.label(i)}`];
      if (c.predicted && c.predicted[i] >= 0) lines.push(`neighbours vote ${this.classes[c.predicted[i]]}`);
      if (c.certainty) lines.push(`certainty ${numberText(c.certainty[i])}`);
      if (c.cluster) lines.push(`cluster ${c.cluster[i] + 1}`);
      return [...lines, `${this.splits[c.split[i]]}, row ${c.row[i]}`];
    }

    show(i) {
      if (i < 0) { this.card.replaceChildren(element("p", "hint", "Point at an image.")); delete this.card.dataset.row; return; }
      const face = element("div", "face"), text = element("div"), list = element("ul", "near-list");
      if (i === this.pinned) text.append(element("p", "pin", "selected"));
      for (const line of this.describe(i)) { const p = element("p"); p.append(element("bdi", "", line)); text.append(p); }
      if (this.sheets.length) face.append(this.thumbnail(i, 96));
      face.append(text);
      const path = element("p", "path"); path.append(element("bdi", "", this.paths[i]));
      list.append(...this.neighbours(i));
      this.card.replaceChildren(face, path, ...(this.k ? [element("h4", "", "Nearest images"), list] : []));
      this.card.dataset.row = this.columns.row[i];
    }

    neighbours(i) {
      const c = this.columns, items = [];
      for (let j = i * this.k; j < (i + 1) * this.k; j++) {
        const to = c.neighbours[j];
        if (to < 0) continue;
        const item = element("li"), button = element("button"), text = element("span", "text");
        button.type = "button"; button.dataset.row = c.row[to];
        text.append(element("span", "", this.label(to)), element("small", "", `cosine ${numberText(c.similarity[j])}`));
        if (c.evidence) text.append(element("small", "evidence", `${c.evidence[j].toFixed(1).replace("-", "\u2212")} nats`));
        if (this.sheets.length) button.append(this.thumbnail(to, 36));
        button.append(text);
        button.addEventListener("click", () => { this.pin(to, true); this.card.querySelector("button")?.focus(); });
        item.append(button);
        items.push(item);
      }
      return items;
    }

    look(i) {
      if (i === this.hover) return;
      this.hover = i;
      if (this.pinned < 0) this.show(i); else if (i < 0) this.show(this.pinned); else this.show(i);
      this.draw();
    }

    pin(i, centre = false) {
      this.pinned = i; this.hover = -1;
      this.figure.dataset.pinned = i < 0 ? "" : this.columns.row[i];
      if (i >= 0 && centre) { const [x, y] = this.place(i); this.at = [this.at[0] + this.width / 2 - x, this.at[1] + this.height / 2 - y]; }
      this.show(i);
      this.live.textContent = i < 0 ? "selection cleared" : `selected ${this.paths[i]}: ${this.describe(i).join(", ")}`;
      this.draw();
    }

    find(text) {
      const wanted = text.trim().toLowerCase(), box = this.figure.querySelector(".matches"), row = this.columns.row.findIndex((r) => String(r) === wanted);
      const matches = row < 0 ? [] : [row], missing = row < 0 && /^\d+$/.test(wanted);
      if (wanted) for (let i = 0; i < this.n && matches.length < 24; i++) {
        if (i !== row && (this.paths[i].toLowerCase().includes(wanted) || this.label(i).toLowerCase() === wanted)) matches.push(i);
      }
      box.hidden = !wanted;
      box.replaceChildren(...(missing ? [element("li", "", `row ${wanted} is not on the map`)] : []), ...matches.map((i) => {
        const item = element("li"), button = element("button", "", `${this.label(i)} · ${this.paths[i]}`);
        button.type = "button"; button.dataset.row = this.columns.row[i];
        button.addEventListener("click", () => this.pin(i, true));
        item.append(button);
        return item;
      }), ...(matches.length || missing || !wanted ? [] : [element("li", "", "no image of that name")]));
      return matches;
    }

    // --- Hands ---------------------------------------------------------------------------------------------------------------------

    listen() {
      const figure = this.figure, canvas = this.canvas, at = (e) => { const b = canvas.getBoundingClientRect(); return [e.clientX - b.left, e.clientY - b.top]; };
      for (const b of figure.querySelectorAll("[data-layout]")) b.addEventListener("click", () => this.lay(b.dataset.layout));
      for (const b of figure.querySelectorAll("[data-colour]")) b.addEventListener("click", () => this.paint(b.dataset.colour));
      for (const b of figure.querySelectorAll("[data-zoom]")) b.addEventListener("click", () => ({ in: () => this.zoom(1.6), out: () => this.zoom(1 / 1.6), all: () => this.fit() })[b.dataset.zoom]());
      canvas.addEventListener("wheel", (e) => { e.preventDefault(); this.zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), ...at(e)); }, { passive: false });
      canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); this.pointers.set(e.pointerId, at(e)); this.moved = 0; });
      canvas.addEventListener("pointermove", (e) => this.move(e.pointerId, at(e)));
      const up = (e) => {
        const pressed = this.pointers.delete(e.pointerId);
        if (pressed && e.type === "pointerup" && this.moved < 5) { const i = this.nearest(...at(e), e.pointerType === "touch" ? 24 : REACH); this.pin(i === this.pinned ? -1 : i); }
      };
      canvas.addEventListener("pointerup", up);
      canvas.addEventListener("pointercancel", up);
      canvas.addEventListener("pointerleave", () => { if (!this.pointers.size) this.look(-1); });
      canvas.addEventListener("keydown", (e) => this.key(e));
      canvas.addEventListener("focus", () => this.draw());
      canvas.addEventListener("blur", () => this.draw());
      document.addEventListener("themechange", () => this.draw());
      const search = figure.querySelector("input[type=search]");
      search.addEventListener("input", () => this.find(search.value));
      search.addEventListener("keydown", (e) => { if (e.key === "Enter") { const matches = this.find(search.value); if (matches.length) this.pin(matches[0], true); } });
    }

    move(id, [x, y]) {
      const before = this.pointers.get(id);
      if (!before) return this.look(this.nearest(x, y));
      const others = [...this.pointers].filter(([other]) => other !== id).map(([, p]) => p);
      this.moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      this.pointers.set(id, [x, y]);
      if (others.length) { // a pinch: what lies between the fingers stays between them
        const [a, b] = others[0], was = Math.hypot(before[0] - a, before[1] - b), is = Math.hypot(x - a, y - b);
        this.pan((x - before[0]) / 2, (y - before[1]) / 2);
        if (was > 0) this.zoom(is / was, (x + a) / 2, (y + b) / 2);
      } else if (this.moved >= 5) this.pan(x - before[0], y - before[1]);
    }

    key(e) {
      const step = 60, acts = {
        ArrowLeft: () => this.pan(step, 0), ArrowRight: () => this.pan(-step, 0), ArrowUp: () => this.pan(0, step), ArrowDown: () => this.pan(0, -step),
        "+": () => this.zoom(1.4), "=": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), 0: () => this.fit(), Escape: () => this.pin(-1),
        Enter: () => this.pin(this.nearest(this.width / 2, this.height / 2, Math.max(this.width, this.height))),
      };
      if (acts[e.key] && !e.ctrlKey && !e.metaKey && !e.altKey) { e.preventDefault(); acts[e.key](); }
    }
  }

  for (const figure of document.querySelectorAll("figure.map")) new ImageMap(figure);
})();
