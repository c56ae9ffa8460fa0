// Keeps a page of jobs fresh: the log stays where it was scrolled to, or at its end; what is open stays open.
import "./pages.js";

const OPEN = "details[open]";

async function refresh() {
  const reply = await fetch(location.href, {headers: {Accept: "text/html"}}).catch(() => null);
  if (!reply || !reply.ok) return;
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById("live");
  const live = document.getElementById("live");
  if (!fresh || fresh.innerHTML === live.innerHTML || live.querySelector(OPEN)) return;
  const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
  const log = live.querySelector("pre");
  const top = log && log.scrollTop + log.clientHeight < log.scrollHeight - 4 ? log.scrollTop : null;
  live.replaceWith(fresh);
  follow(top);
  if (focused) document.getElementById(focused)?.focus();
}

function follow(top) {
  const log = document.querySelector("#live pre");
  if (log) log.scrollTop = top === null ? log.scrollHeight : top;
}

function keepFresh() {
  const active = document.querySelector("#live .running, #live .queued");
  setTimeout(async () => { await refresh(); keepFresh(); }, active ? 2000 : 10000);
}

document.addEventListener("answered", () => {
  document.querySelectorAll(OPEN).forEach((one) => { one.open = false; });
  refresh();
});
follow(null);
keepFresh();
