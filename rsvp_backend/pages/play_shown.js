// What the playground shows: the stages of a run, its mask, its crops and the clicks on the image.
export const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// image: {id, name, size: [width, height]}; run: the last one; base: the one that clicks refine; clicks: in image pixels;
// cross: where the arrow keys are; keys: whether they are in use
export const now = {
  image: null, run: null, base: null, clicks: [], positive: true, cross: null, keys: false, busy: false, again: false,
};

export function show(told) {
  now.run = told;
  $("result").hidden = false;
  say({waiting: "waiting for the models", running: "at work", done: "done", failed: ""}[told.state]);
  $("stages").replaceChildren(...told.stages.map((stage) => stageOf(stage, told)));
  $("command").textContent = told.command;
  const done = told.state === "done";
  $("verdict").hidden = !done;
  $("answer").replaceChildren();
  $("trace").hidden = !told.trace;
  if (done) {
    $("verdict").className = `note told ${told.tone}`;
    $("verdict").textContent = `${told.verdict} ${told.detail}`;
    $("trace").href = `traces/${told.trace}`;
    $("answer").append(...told.instances.map(instanceOf));
    showMask(told.pictures.includes("mask") ? `play/runs/${told.id}/mask` : null);
  }
  if ((told.pictures || []).includes("marked")) {
    $("marks").disabled = false;
    $("marks").dataset.run = told.id;
    if (isPressed($("marks"))) $("photo").src = `play/runs/${told.id}/marked`;
  }
  draw();
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function stageOf(stage, told) {
  const item = element("li", "", stage.state || "idle");
  const states = {went: "✓", failed: "✗", running: "…", "": "–"};
  item.append(element("span", states[stage.state] ?? ""), element("b", stage.title));
  if (stage.seconds !== null) item.append(element("span", `${stage.seconds.toFixed(2)} s`, "dim"));
  if (stage.state === "running") item.append(element("span", "at work", "dim"));
  if (stage.name === "reason" && told.proposals) {
    item.append(...told.proposals.map((one) => element("span", proposalOf(one), "words small")));
  }
  return item;
}

function proposalOf({object, present, regions, reasoning}) {
  const named = Object.entries(regions).filter(([, ids]) => ids.length).map(([kind, ids]) => `${kind} ${ids.join(", ")}`);
  return `${object}: ${present ? named.join("; ") || "no region" : "absent"}. ${reasoning}`;
}

function instanceOf({object, score}) {
  return element("p", `${object}: score ${score.toFixed(3)}`);
}

export function showMask(address) {
  $("mask").hidden = address === null;
  if (address !== null) $("mask").src = address;
}

export function draw() {
  const shapes = (now.run?.crops || []).flatMap(([left, top, right, bottom]) =>
    seen("rect", {class: "crop", x: left, y: top, width: right - left, height: bottom - top}));
  for (const {x, y, positive} of now.clicks) {
    shapes.push(shape("circle", {class: positive ? "in" : "out", cx: x, cy: y, r: unit(6)}));
  }
  if (now.cross && now.keys && document.activeElement === $("shown")) {
    const {x, y} = now.cross;
    const arm = unit(12);
    shapes.push(...seen("path", {class: "cross", d: `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`}));
  }
  $("over").replaceChildren(...shapes);
  $("undo").disabled = now.clicks.length === 0;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A light line over a dark one: it is seen on any image.
function seen(name, attributes) {
  return [shape(name, {...attributes, class: "under"}), shape(name, attributes)];
}

// So many pixels of the screen, in pixels of the image.
function unit(pixels) {
  return pixels * now.image.size[0] / Math.max(1, $("shown").clientWidth);
}

export function say(text) {
  $("status").textContent = text;
}

export function pressed(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

export function isPressed(button) {
  return button.getAttribute("aria-pressed") === "true";
}
