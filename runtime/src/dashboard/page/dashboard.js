// The page: what the run's process sends, shown. Whatever it sends is text, and is never made markup.

import { Chart, html } from "./charts.js";
import { Nodes, showRefusals } from "./nodes.js";
import { showTimeline } from "./timeline.js";
import { bytes, clock, count, duration, number, percent, round, roundPercent } from "./words.js";

// Of a point, as `history.rs` writes it.
const COLUMNS = ["step", "elapsed", "loss", "low", "high", "rate", "sent", "received", "compute", "send", "wait", "learning"];
const at = Object.fromEntries(COLUMNS.map((name, place) => [name, place]));
// Between two attempts to reach a run that does not answer.
const AGAIN_MS = 2_000;
// Speeds are means over a share of all points, of which there are so many.
const SHOWN = 60;
// Notices in the page at most.
const NOTICES = 200;

const element = (name) => document.querySelector(`#${name}`);
const show = (name, text) => {
  if (element(name).textContent !== text) element(name).textContent = text;
};

const curves = { points: [], open: null, tests: [], stride: 1, sent: 0, received: 0 };
const nodes = new Nodes();
let over = false;

const charts = {
  loss: new Chart(element("chart-loss"), {
    title: "Loss",
    series: [
      { name: "training", mark: "line", tone: "one" },
      { name: "test", mark: "points", tone: "two" },
    ],
    format: number,
    round,
    log: true,
    empty: "No step is complete yet.",
  }),
  accuracy: new Chart(element("chart-accuracy"), {
    title: "Test accuracy",
    series: [{ name: "test", mark: "points", tone: "two" }],
    format: percent,
    round: roundPercent,
    empty: "Not evaluated yet.",
  }),
  rate: new Chart(element("chart-rate"), {
    title: "Throughput",
    series: [{ name: "samples/s", mark: "line", tone: "one" }],
    format: number,
    round,
    zero: true,
    empty: "No step is complete yet.",
  }),
  bytes: new Chart(element("chart-bytes"), {
    title: "Network, bytes a second",
    series: [
      { name: "sent", mark: "line", tone: "one" },
      { name: "received", mark: "dashed", tone: "two" },
    ],
    format: bytes,
    zero: true,
    binary: true,
    empty: "No step is complete yet.",
  }),
};

function takeCurves({ whole, stride, points, open, tests, bytes_sent, bytes_received }) {
  if (whole) [curves.points, curves.tests] = [[], []];
  curves.points.push(...points);
  curves.tests.push(...tests);
  Object.assign(curves, { open, stride, sent: bytes_sent, received: bytes_received });
}

function showCurves() {
  const points = curves.open ? [...curves.points, curves.open] : curves.points;
  const column = (name) => points.map((point) => point[at[name]]);
  const x = column("step");
  const [tested, testLoss, testAccuracy] = [0, 1, 2].map((place) => curves.tests.map((test) => test[place]));
  // Steps are too short for a second to be told from one: a mean over some of them is.
  const together = Math.max(1, Math.round(points.length / SHOWN));
  const began = (place) => (place > 0 ? points[place - 1][at.elapsed] : 0);
  const perSecond = (much) =>
    points.map((_, place) => {
      const first = Math.max(0, place - together + 1);
      const seconds = points[place][at.elapsed] - began(first);
      let sum = 0;
      for (let some = first; some <= place; some += 1) sum += much(points[some], some);
      return seconds > 0 ? sum / seconds : null;
    });
  const samples = (point, place) => point[at.rate] * Math.max(0, point[at.elapsed] - began(place));
  const band = curves.stride > 1 ? { low: column("low"), high: column("high") } : {};
  const over = x.length ? [x[0], x.at(-1)] : [];
  const shown = {
    loss: [
      { x, y: column("loss"), ...band },
      { x: tested, y: testLoss },
    ],
    accuracy: [{ x: tested, y: testAccuracy }],
    rate: [{ x, y: perSecond(samples) }],
    bytes: [
      { x, y: perSecond((point) => point[at.sent]) },
      { x, y: perSecond((point) => point[at.received]) },
    ],
  };
  for (const [name, data] of Object.entries(shown)) charts[name].set(data, over);
  const merged = curves.stride > 1 ? `A point is the mean of ${count(curves.stride)} steps; the band has their lowest and highest loss. ` : "";
  const smooth = together * curves.stride > 1 ? `Throughput and bytes are means over ${count(together * curves.stride)} steps.` : "";
  show("merged", merged + smooth);
  show("bytes", points.length ? `${bytes(curves.sent)}, ${bytes(curves.received)}` : "–");
  return points;
}

function showStatus(status, points) {
  if (!over) badge(status.state);
  element("progress").value = status.steps ? status.step / status.steps : 0;
  show("step", `${count(status.step)} of ${count(status.steps)}`);
  show("epoch", `${count(Math.min(status.epoch, status.epochs))} of ${count(status.epochs)}`);
  show("loss", number(status.loss));
  const found = status.evaluated;
  show("accuracy", found ? `${percent(found.test_accuracy)} after step ${count(found.step)}` : "not evaluated yet");
  show("rate", `${count(status.samples_per_second)} samples/s`);
  show("time", time(status, points));
  document.title = `${count(status.step)} of ${count(status.steps)} – ${status.job}`;
  nodes.take(status, over);
  show("refused", count(showRefusals(status)));
  if (!over && status.stalled) say(`No progress: ${status.stalled}`, "warning");
  else if (!over) say("");
}

// How long it has taken and, by the last fifth of it, how long it still will.
function time(status, points) {
  const last = points.at(-1);
  if (!last) return "–";
  const before = points[Math.floor((points.length - 1) * 0.8)];
  const left = ((last[at.elapsed] - before[at.elapsed]) / (last[at.step] - before[at.step])) * (status.steps - status.step);
  const rest = over || !Number.isFinite(left) || status.step >= status.steps ? "" : `, about ${duration(left)} left`;
  return duration(last[at.elapsed]) + rest;
}

function takeNotices(notices) {
  for (const notice of notices) {
    const moment = html("time", { datetime: new Date(notice.at).toISOString() }, clock(notice.at));
    element("notices").prepend(html("li", {}, moment, " ", notice.text));
  }
  while (element("notices").children.length > NOTICES) element("notices").lastChild.remove();
  if (notices.length) element("notices-said").hidden = true;
}

function badge(state) {
  show("state", state);
  element("state").className = `badge ${state.replaceAll(" ", "-")}`;
}

function say(text, kind = "plain") {
  element("banner").hidden = !text;
  element("banner").className = `banner ${kind}`;
  show("banner", text);
}

// The run is over: what is here stays, for there is nobody to ask for more.
function end({ how, text, summary }) {
  over = true;
  badge(how);
  const result = summary ? ` Test accuracy ${percent(summary.test_accuracy)} after ${count(summary.steps)} steps.` : "";
  const said = { finished: "The run has finished.", stopped: "The run was stopped in order.", interrupted: "The run was ended at once.", failed: "The run has failed." };
  say(`${said[how] ?? "The run is over."}${result} ${text} This page shows its last state.`, how === "failed" ? "warning" : "plain");
}

function take(event) {
  show("job", event.job);
  show("place", event.run_dir);
  takeCurves(event.curves);
  takeNotices(event.notices);
  const points = showCurves();
  if (event.ending) end(event.ending);
  if (event.status) showStatus(event.status, points);
  showTimeline(event.timeline, nodes.arithmetic());
}

// Whether a stream was lost because the run's process is gone or because it refuses one: browsers do not tell.
async function why() {
  const answer = await fetch("state").catch(() => null);
  if (answer?.status === 401) {
    return "This page's session is over: open the link in dashboard.url in the run's directory.";
  }
  if (answer?.ok) return "The stream of events ended. If it stays so, too many pages follow this run: close one. Trying again…";
  return null;
}

function follow() {
  const source = new EventSource("events");
  let fresh = true;
  source.onmessage = ({ data }) => {
    if (fresh) {
      // All notices come again with a new stream.
      element("notices").replaceChildren();
      fresh = false;
    }
    take(JSON.parse(data));
    if (over) source.close();
  };
  source.onerror = async () => {
    source.close();
    if (over) return;
    const gone = `Connection lost at ${clock(Date.now())}: the run's process is gone, or is not reached. What is shown is of then. Trying again…`;
    say((await why()) ?? gone, "warning");
    badge("not connected");
    setTimeout(follow, AGAIN_MS);
  };
}

follow();
