// The run node by node: the table, and refusals.

import { html } from "./charts.js";
import { bytes, count, many, number } from "./words.js";

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
      ? `Membership epoch ${count(status.membership_epoch)}; ${many(status.workers_wanted, "worker")} wanted.${lost} All but the scheduler as of their last heartbeat.${more}`
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

  // By server: the microseconds that its arithmetic takes for a step, lately.
  arithmetic() {
    const found = new Map();
    for (const { node, track, there } of this.seen.values()) {
      const [first, last] = [track[0], track.at(-1)];
      const steps = last.step - first.step;
      if (there && steps > 0 && last.busy > 0) found.set(node.node, (last.busy - first.busy) / steps);
    }
    return found;
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
