"use strict";
const said = document.getElementById("said");

async function post(address, body) {
  const options = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
  const reply = await fetch(address, options);
  const {detail} = await reply.json().catch(() => ({}));
  if (reply.ok) return;
  const told = Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail;
  throw new Error(told || `the answer was ${reply.status}`);
}

async function act(address, body) {
  said.textContent = "";
  try {
    await post(address, body);
  } catch (error) {
    said.textContent = error.message;
  }
  await refresh();
}

// The log stays where it was scrolled to, or at its end.
async function refresh() {
  const reply = await fetch(location.href, {headers: {Accept: "text/html"}}).catch(() => null);
  if (!reply || !reply.ok) return;
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main");
  if (!fresh || fresh.innerHTML === document.querySelector("main").innerHTML) return;
  const log = document.querySelector("pre");
  const top = log && log.scrollTop + log.clientHeight < log.scrollHeight - 4 ? log.scrollTop : null;
  document.querySelector("main").replaceWith(fresh);
  follow(top);
}

function follow(top) {
  const log = document.querySelector("pre");
  if (log) log.scrollTop = top === null ? log.scrollHeight : top;
}

async function keepFresh() {
  const active = document.querySelector(".running, .queued");
  setTimeout(async () => { await refresh(); keepFresh(); }, active ? 2000 : 10000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) return;
  button.disabled = true;
  act(button.dataset.post, {});
});
document.addEventListener("submit", (event) => {
  event.preventDefault();
  act(event.target.dataset.post, {project: Number(event.target.elements.project.value)});
});
follow(null);
keepFresh();
