// A link's token for a session. The token stands behind the `#`, which browsers send to nobody, and leaves the address and the
// history here.

const said = document.querySelector("#said");
const token = location.hash.slice(1);
history.replaceState(null, "", "/open");

async function open() {
  if (!token) {
    said.textContent =
      "This address opens nothing by itself: it takes the link that `testudo run --dashboard` printed. " +
      "If that was used already, another is in dashboard.url in the run's directory.";
    return;
  }
  const answer = await fetch("/session", { method: "POST", headers: { "Content-Type": "text/plain" }, body: token });
  const text = (await answer.text()).trim();
  if (answer.ok && /^\/[\w-]+\/$/.test(text)) {
    location.replace(text);
  } else {
    said.textContent = `The page was not opened: ${text}.`;
  }
}

open().catch(() => {
  said.textContent = "Nobody answers: the run is over, or this machine is not reached.";
});
