// Line charts in SVG. Sizes and places are attributes and colours classes, so that no style is inline.

const NAMESPACE = "http://www.w3.org/2000/svg";
const HEIGHT = 220;
const MARGIN = { left: 60, right: 14, top: 10, bottom: 26 };
// Pixels between two marks of evaluations at least.
const MARKS_APART = 10;

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Round numbers from low to high, about so many; of bytes, round in the unit that fits.
export function ticks(low, high, about, binary = false) {
  const unit = binary && high > 0 ? 1024 ** Math.floor(Math.log(high) / Math.log(1024)) : 1;
  if (unit !== 1) return ticks(low / unit, high / unit, about).map((at) => at * unit);
  const rough = (high - low) / about;
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
  const all = [];
  // Where numbers are so large that a step is lost in them, there are no ticks.
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6 && at + step > at; at += step) all.push(Number(at.toPrecision(12)));
  return all;
}

function decades(low, high) {
  const all = [];
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const factors = last - first > 3 ? [1] : [1, 2, 5];
  for (let power = first; power <= last; power += 1) {
    for (const factor of factors) {
      const at = factor * 10 ** power;
      if (at >= low && at <= high) all.push(Number(at.toPrecision(3)));
    }
  }
  return all;
}

// `series` says of each curve its name, its mark ("line", "dashed" or "points") and its tone ("one" or "two").
export class Chart {
  constructor(figure, { title, series, format, round = format, zero = false, binary = false, log = false, empty }) {
    Object.assign(this, { figure, title, series, format, round, zero, binary, empty, logarithmic: false, cursor: null, data: [], over: [] });
    this.readout = html("p", { class: "readout" });
    const caption = html("figcaption", {}, html("strong", {}, title), ...series.map(legend));
    if (log) caption.append(this.toggle());
    this.canvas = svg("svg", { height: HEIGHT, tabindex: 0, role: "img", class: "canvas" });
    figure.append(caption, this.canvas, this.readout);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.move(null));
    this.canvas.addEventListener("blur", () => this.move(null));
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  toggle() {
    const button = html("button", { type: "button", "aria-pressed": "false" }, "logarithmic");
    button.addEventListener("click", () => {
      this.logarithmic = !this.logarithmic;
      button.setAttribute("aria-pressed", String(this.logarithmic));
      this.draw();
    });
    return button;
  }

  // `data` has of each curve `x` and `y`, and perhaps `low` and `high`; `null` is a gap. `steps` is what all charts reach over.
  set(data, steps = []) {
    Object.assign(this, { data, over: steps });
    this.draw();
  }

  draw() {
    const width = Math.max(this.figure.clientWidth, 160);
    this.canvas.setAttribute("width", width);
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const shown = (value) => value !== null && Number.isFinite(value) && (!this.logarithmic || value > 0);
    const xs = this.data.flatMap(({ x, y }) => x.filter((_, at) => shown(y[at])));
    const ys = this.data.flatMap(({ y, low, high }) => [...y, ...(low ?? []), ...(high ?? [])]).filter(shown);
    this.canvas.replaceChildren();
    if (!xs.length) {
      this.scale = null;
      const text = svg("text", { x: width / 2, y: HEIGHT / 2, class: "empty", "text-anchor": "middle" }, this.empty);
      this.canvas.append(text);
      this.say();
      return;
    }
    this.scale = this.scales(width, extent([...xs, ...this.over]), extent(ys));
    this.axes(width);
    this.data.forEach((curve, at) => this.curve(curve, this.series[at], shown));
    this.drawCursor();
    this.say();
  }

  scales(width, [left, right], [low, high]) {
    if (this.zero) low = Math.min(low, 0);
    if (!(high > low)) [low, high] = [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
    const [inner, top, bottom] = [width - MARGIN.left - MARGIN.right, MARGIN.top, HEIGHT - MARGIN.bottom];
    const across = (value) => MARGIN.left + (right > left ? (value - left) / (right - left) : 0.5) * inner;
    const place = this.logarithmic ? Math.log10 : (value) => value;
    const [from, to] = [place(low), place(high)];
    const up = (value) => bottom - ((place(value) - from) / (to - from || 1)) * (bottom - top);
    return { across, up, left, right, low, high, top, bottom };
  }

  axes(width) {
    const { across, up, left, right, low, high, bottom } = this.scale;
    for (const at of this.logarithmic ? decades(low, high) : ticks(low, high, 5, this.binary)) {
      this.canvas.append(
        svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: up(at), y2: up(at), class: "grid" }),
        svg("text", { x: MARGIN.left - 8, y: up(at) + 4, "text-anchor": "end", class: "tick" }, this.round(at)),
      );
    }
    const whole = ticks(left, right, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger);
    for (const at of whole.length ? whole : [left]) {
      const anchor = across(at) > width - 40 ? "end" : "middle";
      const text = at.toLocaleString("en");
      this.canvas.append(svg("text", { x: across(at), y: HEIGHT - 6, "text-anchor": anchor, class: "tick" }, text));
    }
    this.canvas.append(svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom, class: "axis" }));
  }

  curve({ x, y, low, high }, { mark, tone }, shown) {
    const { across, up } = this.scale;
    if (low && x.length > 1) {
      const there = x.map((_, at) => at).filter((at) => shown(low[at]) && shown(high[at]));
      const corner = (values) => (at) => `${across(x[at]).toFixed(1)} ${up(values[at]).toFixed(1)}`;
      const edge = [...there.map(corner(high)), ...there.reverse().map(corner(low))];
      if (edge.length) this.canvas.append(svg("path", { d: `M${edge.join("L")}Z`, class: `band ${tone}` }));
    }
    let path = "";
    let pen = "M";
    const marks = [];
    x.forEach((step, at) => {
      if (!shown(y[at])) {
        pen = "M";
        return;
      }
      const [right, down] = [across(step), up(y[at])];
      // A point between two gaps is a dot.
      path += `${pen}${right.toFixed(1)} ${down.toFixed(1)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
      const last = at === x.length - 1;
      if (last && marks.length && right - marks.at(-1)[0] < MARKS_APART) marks.pop();
      if (last || !marks.length || right - marks.at(-1)[0] >= MARKS_APART) marks.push([right, down]);
    });
    this.canvas.append(svg("path", { d: path, class: `line ${mark} ${tone}` }));
    if (mark === "points") marks.forEach(([right, down]) => this.canvas.append(diamond(right, down, tone)));
  }

  // Points of the first curve that has any, over which the cursor goes.
  steps() {
    const longest = this.data.reduce((best, curve) => (curve.x.length > (best?.x.length ?? 0) ? curve : best), null);
    return longest?.x ?? [];
  }

  drawCursor() {
    if (this.cursor === null || !this.scale) return;
    const { across, up, top, bottom } = this.scale;
    const right = across(this.cursor);
    this.canvas.append(svg("line", { x1: right, x2: right, y1: top, y2: bottom, class: "cursor" }));
    this.data.forEach((curve, at) => {
      const near = nearest(curve.x, this.cursor);
      if (near >= 0 && curve.y[near] !== null) {
        const dot = { cx: across(curve.x[near]), cy: up(curve.y[near]), r: 4, class: `dot ${this.series[at].tone}` };
        if (Number.isFinite(dot.cy)) this.canvas.append(svg("circle", dot));
      }
    });
  }

  // What the curves have at the cursor, or at their ends.
  say() {
    const parts = this.data.map(({ x, y }, at) => {
      const near = this.cursor === null ? x.length - 1 : nearest(x, this.cursor);
      return near < 0 ? null : `${this.series[at].name} ${this.format(y[near])} (step ${x[near].toLocaleString("en")})`;
    });
    const text = parts.filter((part) => part).join(" · ");
    this.readout.textContent = text;
    this.canvas.setAttribute("aria-label", `${this.title}: ${text || this.empty}`);
    return text;
  }

  move(cursor) {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.draw();
  }

  point(event) {
    const steps = this.steps();
    if (!this.scale || !steps.length) return;
    const width = this.canvas.clientWidth - MARGIN.left - MARGIN.right;
    const share = (event.clientX - this.canvas.getBoundingClientRect().left - MARGIN.left) / width;
    const { left, right } = this.scale;
    this.move(steps[nearest(steps, left + share * (right - left))]);
  }

  key(event) {
    const steps = this.steps();
    if (!steps.length) return;
    const last = steps.length - 1;
    const here = this.cursor === null ? last : nearest(steps, this.cursor);
    const far = Math.max(1, Math.round(steps.length / 20));
    const to = {
      ArrowLeft: here - (event.shiftKey ? far : 1),
      ArrowRight: here + (event.shiftKey ? far : 1),
      Home: 0,
      End: last,
    }[event.key];
    if (event.key === "Escape") return this.move(null);
    if (to === undefined) return;
    event.preventDefault();
    this.move(steps[Math.min(last, Math.max(0, to))]);
    document.querySelector("#spoken").textContent = this.say();
  }
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

// The place in ascending `x` that is nearest to `value`; -1 in none.
function nearest(x, value) {
  let [low, high] = [0, x.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= value) low = middle;
    else high = middle;
  }
  return high < 0 ? -1 : Math.abs(x[low] - value) <= Math.abs(x[high] - value) ? low : high;
}

function diamond(right, down, tone) {
  const d = `M${right} ${down - 4.5}l4.5 4.5l-4.5 4.5l-4.5 -4.5Z`;
  return svg("path", { d, class: `mark ${tone}` });
}

function legend({ name, mark, tone }) {
  const sample = svg("svg", { width: 26, height: 10, "aria-hidden": "true" });
  sample.append(svg("path", { d: "M1 5H25", class: `line ${mark} ${tone}` }));
  if (mark === "points") sample.append(diamond(13, 5, tone));
  return html("span", { class: "legend" }, sample, name);
}
