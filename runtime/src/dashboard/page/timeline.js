// One step's time: which node did what when, on one scale.

import { html, svg, ticks } from "./charts.js";
import { count, milliseconds, round } from "./words.js";

const bare = (us) => milliseconds(us).replace(" ms", "");

// Bars that are shown at most; the page says how many it leaves out.
const BARS = 200;
// Percent of the width that a stage has at least, so that short ones are seen.
const LEAST = 0.3;
// Ticks of the axis, about so many.
const TICKS = 6;

// What each stage of a step is called; the patterns of `index.html` tell them apart without colour.
const STAGES = {
  wait: { words: "waiting for parameters" },
  compute: { words: "computing" },
  send: { words: "sending what is left", fill: "url(#hatch)" },
  collect: { words: "contributions come in", fill: "url(#dots)" },
  update: { words: "the last of them are added up, slices updated", fill: "url(#lines)" },
};

const stage = (name, from, to) => ({ name, from, to: Math.max(from, to) });

function ofWorker(span) {
  const computed = span.ended_at_us - span.send_us;
  return [
    stage("wait", span.ready_at_us - span.wait_us, span.ready_at_us),
    stage("compute", span.began_at_us, computed),
    stage("send", computed, span.ended_at_us),
  ];
}

function ofServer(span) {
  return [stage("collect", span.first_at_us, span.last_at_us), stage("update", span.last_at_us, span.done_at_us)];
}

function look(name) {
  const { fill } = STAGES[name];
  return { class: `stage ${name}`, ...(fill ? { fill } : {}) };
}

function drawing(height, ...children) {
  return svg("svg", { height, width: "100%", "aria-hidden": "true" }, ...children);
}

function axis(low, high, across) {
  const all = ticks(low / 1000, high / 1000, TICKS).map((at) => [across(at * 1000), round(at)]);
  const anchor = (place) => (place > 95 ? "end" : place < 5 ? "start" : "middle");
  const parts = all.flatMap(([place, text]) => [
    svg("line", { x1: `${place}%`, x2: `${place}%`, y1: 0, y2: 4, class: "axis" }),
    svg("text", { x: `${place}%`, y: 16, "text-anchor": anchor(place), class: "tick" }, text),
  ]);
  const line = svg("line", { x1: "0%", x2: "100%", y1: 0.5, y2: 0.5, class: "axis" });
  return html("div", { class: "scale" }, html("span", {}), drawing(18, line, ...parts), html("span", { class: "figure" }, "ms since the step was opened"));
}

// `lately` has of servers what their arithmetic took for a step, in microseconds.
export function showTimeline(timeline, lately) {
  if (!timeline) return;
  const bars = [
    ...timeline.workers.map((span) => ({ node: span.node, stages: ofWorker(span), more: "" })),
    ...timeline.servers.map((span) => {
      const busy = lately.get(span.node);
      return { node: span.node, stages: ofServer(span), more: busy === undefined ? "" : ` · arithmetic ${bare(busy)}` };
    }),
  ];
  const all = bars.flatMap(({ stages }) => stages);
  const low = all.reduce((least, { from }) => Math.min(least, from), Infinity);
  const high = Math.max(low + 1, all.reduce((most, { to }) => Math.max(most, to), -Infinity));
  const across = (at) => ((at - low) / (high - low)) * 100;
  const rows = bars.slice(0, BARS).map(({ node, stages, more }) => {
    const rects = stages.map(({ name, from, to }) => {
      const width = Math.max(across(to) - across(from), to > from ? LEAST : 0);
      return svg("rect", { x: `${Math.min(across(from), 100 - width)}%`, y: 1, width: `${width}%`, height: 16, ...look(name) });
    });
    const figures = stages.map(({ name, from, to }) => `${name} ${bare(to - from)}`).join(" · ");
    const begin = `from ${bare(Math.min(...stages.map(({ from }) => from)))}: `;
    const figure = html("span", { class: "figure" }, `${begin}${figures}${more} ms`);
    return html("div", { class: "bar" }, html("span", { class: "name" }, node), drawing(18, ...rects), figure);
  });
  const legends = Object.entries(STAGES).map(([name, { words }]) => {
    const sample = svg("svg", { width: 26, height: 12, "aria-hidden": "true" });
    sample.append(svg("rect", { x: 1, y: 1, width: 24, height: 10, ...look(name) }));
    return html("span", { class: "legend" }, sample, words);
  });
  const more = bars.length > BARS ? [html("p", { class: "quiet" }, `${count(bars.length - BARS)} more nodes are not shown.`)] : [];
  document.querySelector("#timeline").replaceChildren(html("p", { class: "legends" }, ...legends), ...rows, axis(low, high, across), ...more);
  const servers = timeline.servers.length ? "" : " No server has told of it.";
  document.querySelector("#timeline-said").textContent =
    `Step ${count(timeline.step)}, complete ${milliseconds(timeline.duration_us)} after the one before.${servers} Time runs from when the scheduler ` +
    "opened the step, which is some steps ahead. Clocks need not agree: the quickest of a node's last messages says how its clock compares to the " +
    "scheduler's, and what even that one took on its way is not taken off.";
}
