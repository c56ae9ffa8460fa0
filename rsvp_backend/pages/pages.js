// What the pages share: forms and buttons that ask this server for something, and tell what it says to that.
const said = document.getElementById("said");

export function tell(text) {
  said.textContent = text;
}

// The answer's JSON; an Error with the server's own words where it refuses.
export async function ask(address, options = {}) {
  const reply = await fetch(address, options);
  const answer = await reply.json().catch(() => ({}));
  if (reply.ok) return answer;
  const {detail} = answer;
  const words = Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail;
  throw new Error(words || `the server answered ${reply.status}`);
}

export function post(address, body) {
  return ask(address, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
}

function bodyOf(form) {
  const body = {};
  for (const [name, value] of new FormData(form)) {
    body[name] = form.elements[name].type === "number" ? Number(value) : value;
  }
  return body;
}

async function act(button, address, body) {
  tell("");
  if (button) button.disabled = true;
  try {
    const answer = await post(address, body);
    if (answer.page) location.assign(answer.page);
    document.dispatchEvent(new Event("answered"));
  } catch (error) {
    tell(error.message);
  } finally {
    if (button) button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) act(button, button.dataset.post, JSON.parse(button.dataset.body || "{}"));
});
document.addEventListener("submit", (event) => {
  const {post: address} = event.target.dataset;
  if (!address) return;
  event.preventDefault();
  act(event.submitter, address, bodyOf(event.target));
});
