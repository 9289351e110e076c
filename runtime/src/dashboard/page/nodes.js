// The run node by node: the table, one step's time, and refusals.

import { html, svg } from "./charts.js";
import { bytes, count, many, milliseconds, number } from "./words.js";

// Rows that are shown at most; the page says how many it leaves out.
const ROWS = 200;
// A node of which nothing was heard for so long is said to be silent.
const SILENT_MS = 3_000;
// Over how long speeds are taken.
const LATELY_MS = 10_000;

const WHAT = {
  datagrams: "datagrams that no node of the job sent",
  knocks: "first packets beyond their rate",
  handshakes: "handshakes beyond their rate",
  strangers: "handshakes that failed: certificate, identity, protocol, deadline",
  full: "connections beyond a limit",
  faults: "connections whose peer broke the protocol",
  shut_out: "newcomers shut out for what they did before",
  joins: "nodes that asked to join and were turned away",
};

// What each stage of a step is called; the patterns of `index.html` tell them apart without colour.
const STAGES = {
  wait_us: ["wait", "waiting for parameters"],
  compute_us: ["compute", "computing"],
  send_us: ["send", "sending"],
  busy_us: ["add", "adding up and updating"],
};
const PATTERNS = { send_us: "url(#hatch)", busy_us: "url(#dots)" };

function look(stage) {
  return { class: `stage ${STAGES[stage][0]}`, ...(PATTERNS[stage] ? { fill: PATTERNS[stage] } : {}) };
}

export class Nodes {
  constructor() {
    this.seen = new Map();
    this.rows = document.querySelector("#nodes tbody");
    this.said = document.querySelector("#nodes-said");
  }

  // Takes note of a report.
  take(status, over) {
    const now = performance.now();
    const ended = over || ["finishing", "finished", "failed"].includes(status.state);
    for (const known of this.seen.values()) known.there = false;
    for (const node of status.nodes) {
      let known = this.seen.get(node.node);
      if (!known || known.node.incarnation !== node.incarnation) known = { track: [] };
      Object.assign(known, { node, there: true });
      this.seen.set(node.node, known);
      // Who joins again is not at the first step, but has not said so yet.
      if (known.track.at(-1)?.step === 0) known.track = [];
      const last = known.track.at(-1);
      if (!last || last.step !== node.step || last.busy !== node.load.busy_us) {
        known.track.push({ at: now, step: node.step, busy: node.load.busy_us });
      }
      while (known.track.length > 2 && now - known.track[0].at > LATELY_MS) known.track.shift();
    }
    const all = [...this.seen.entries()].sort(([one], [other]) => one.localeCompare(other, "en", { numeric: true }));
    const scheduler = { node: "scheduler/0", load: status.load };
    const cells = [this.row(scheduler, [over ? "○" : "●", over ? "ended" : status.state], null, true)];
    for (const [, known] of all.slice(0, ROWS)) cells.push(this.row(known.node, state(known, ended), known.track, known.there));
    fill(this.rows, cells);
    const more = all.length > ROWS ? ` ${count(all.length - ROWS)} more are not shown.` : "";
    const lost = status.workers_lost ? ` ${many(status.workers_lost, "worker")} lost on the way.` : "";
    this.said.textContent = all.length
      ? `Membership epoch ${count(status.membership_epoch)}; ${many(status.workers_wanted, "worker")} wanted.${lost}${more}`
      : "No node has joined yet.";
  }

  row(node, [symbol, words], track, there) {
    const member = track !== null;
    const refused = Object.values(node.load.refused).reduce((sum, some) => sum + some, 0);
    return [
      node.node,
      `${symbol} ${words}`,
      member ? count(node.step) : "",
      member && there ? speed(track) : "",
      node.shards ? count(node.shards) : "",
      `${bytes(node.load.held_bytes)} / ${bytes(node.load.promised_bytes)}`,
      count(node.load.connections),
      count(refused),
      member && there ? `${count(node.heard_ms)} ms ago` : "",
      member ? count(node.incarnation) : "",
    ];
  }

  // Microseconds of a step that each server spends on it, lately.
  servers() {
    const all = [...this.seen.values()].filter(({ node, there }) => there && node.node.startsWith("server/"));
    return all.map(({ node, track }) => {
      const [first, last] = [track[0], track.at(-1)];
      const steps = last.step - first.step;
      return { node: node.node, busy_us: steps > 0 ? (last.busy - first.busy) / steps : null };
    });
  }
}

function state({ node, there }, ended) {
  if (!there) return ended ? ["○", "left"] : ["✕", "gone"];
  if (ended) return ["●", "done"];
  if (node.heard_ms > SILENT_MS) return ["▲", "silent"];
  return node.waiting ? ["◐", `waits: ${node.waiting}`] : ["●", "works"];
}

function speed(track) {
  const [first, last] = [track[0], track.at(-1)];
  return last.at > first.at ? number(((last.step - first.step) / (last.at - first.at)) * 1000) : "–";
}

// Cells are changed only where they differ, so that what a reader has selected stays.
function fill(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, at) => {
    const row = body.rows[at] ?? body.insertRow();
    cells.forEach((text, column) => {
      let cell = row.cells[column];
      if (!cell) {
        cell = column === 0 ? html("th", { scope: "row" }) : html("td");
        if (body.parentElement.tHead.rows[0].cells[column].classList.contains("number")) cell.className = "number";
        row.append(cell);
      }
      if (cell.textContent !== text) cell.textContent = text;
    });
  });
}

// One step's time: a bar for each worker, and one for each server.
export function showTimeline(timeline, servers) {
  const place = document.querySelector("#timeline");
  const said = document.querySelector("#timeline-said");
  if (!timeline) return;
  const bars = [...timeline.workers, ...servers.filter((server) => server.busy_us !== null)];
  const total = (bar) => Object.keys(STAGES).reduce((sum, stage) => sum + (bar[stage] ?? 0), 0);
  const longest = Math.max(1, ...bars.map(total));
  said.textContent =
    `Step ${count(timeline.step)}, complete ${milliseconds(timeline.duration_us)} after the one before. A worker's bar begins when it ` +
    `turned to the step; a server's is a mean over the last steps. All bars are on one scale: the whole width is ${milliseconds(longest)}.`;
  const rows = bars.slice(0, ROWS).map((bar) => {
    const stages = Object.keys(STAGES).filter((stage) => stage in bar);
    const figures = stages.map((stage) => `${STAGES[stage][0]} ${milliseconds(bar[stage])}`).join(" · ");
    const drawn = svg("svg", { height: 18, width: "100%", "aria-hidden": "true" });
    let from = 0;
    for (const stage of stages) {
      const share = (bar[stage] / longest) * 100;
      drawn.append(svg("rect", { x: `${from}%`, y: 1, width: `${share}%`, height: 16, ...look(stage) }));
      from += share;
    }
    return html("div", { class: "bar" }, html("span", { class: "name" }, bar.node), drawn, html("span", { class: "figure" }, figures));
  });
  const legends = Object.entries(STAGES).map(([stage, [, words]]) => {
    const sample = svg("svg", { width: 26, height: 12, "aria-hidden": "true" });
    sample.append(svg("rect", { x: 1, y: 1, width: 24, height: 10, ...look(stage) }));
    return html("span", { class: "legend" }, sample, words);
  });
  const more = bars.length > ROWS ? [html("p", { class: "quiet" }, `${count(bars.length - ROWS)} more nodes are not shown.`)] : [];
  place.replaceChildren(html("p", { class: "legends" }, ...legends), ...rows, ...more);
}

// What was refused, by whom. Answers how much that is.
export function showRefusals(status) {
  const told = [["scheduler/0", status.load.refused], ...status.nodes.map((node) => [node.node, node.load.refused])];
  const rows = Object.keys(WHAT).map((reason) => {
    if (reason === "joins") return { reason, sum: status.joins_refused, by: ["scheduler/0"] };
    const some = told.filter(([, refused]) => refused[reason] > 0);
    return { reason, sum: some.reduce((sum, [, refused]) => sum + refused[reason], 0), by: some.map(([name]) => name) };
  });
  const seen = rows.filter(({ sum }) => sum > 0);
  const names = (by) => by.slice(0, 8).join(", ") + (by.length > 8 ? ` and ${by.length - 8} more` : "");
  fill(document.querySelector("#refusals tbody"), seen.map(({ reason, sum, by }) => [WHAT[reason], count(sum), names(by)]));
  document.querySelector("#refusals").hidden = !seen.length;
  document.querySelector("#refusals-said").hidden = seen.length > 0;
  return rows.reduce((sum, row) => sum + row.sum, 0);
}
