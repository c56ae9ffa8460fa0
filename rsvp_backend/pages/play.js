// The playground: an image and an instruction go to the server, and what each stage makes of them is shown as it comes.
import {ask, post, tell} from "./pages.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const LOOK_MS = 250;
const STEP_SHARE = 0.01;

const form = $("ask");
// image: {id, name, size: [width, height]}; run: the last one; base: the one that clicks refine; clicks: in image pixels;
// cross: where the arrow keys are; keys: whether they are in use
const now = {image: null, run: null, base: null, clicks: [], positive: true, cross: null, keys: false, busy: false, again: false};

// --- the image ----------------------------------------------------------------------------------------------------

async function bring(file) {
  await guarded(async () => {
    say("reading the image");
    const headers = {"Content-Type": file.type.startsWith("image/") ? file.type : "image/unknown"};
    const {image, size} = await ask("play/images", {method: "POST", headers, body: file});
    take({id: image, name: file.name, size});
  });
}

async function sample() {
  await guarded(async () => {
    const made = await ask(`play/samples/${Math.floor(Math.random() * 100000)}`);
    take({id: made.image, name: made.name, size: made.size});
    form.elements.instruction.value = made.instruction;
  });
}

function take(image) {
  Object.assign(now, {image, run: null, base: null, clicks: [], cross: null});
  const [width, height] = image.size;
  $("photo").src = `play/images/${image.id}`;
  $("photo").alt = image.name;
  $("photo").width = width;
  $("photo").height = height;
  $("over").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("drop").hidden = true;
  $("looked").hidden = false;
  $("result").hidden = true;
  $("marks").disabled = true;
  showMask(null);
  pressed($("marks"), false);
  draw();
  say(`${image.name}, ${width} x ${height} pixels`);
  form.elements.instruction.focus();
}

function another() {
  $("drop").hidden = false;
  $("looked").hidden = true;
  $("result").hidden = true;
  $("file").value = "";
  now.image = null;
  say("");
  $("file").focus();
}

// --- runs ---------------------------------------------------------------------------------------------------------

function asked(clicks) {
  const {instruction, kind, rows, columns, padding, zoom} = form.elements;
  return {
    image: now.image.id, name: now.image.name, instruction: instruction.value, padding: Number(padding.value),
    zoom: zoom.value, marks: {kind: kind.value, rows: Number(rows.value), columns: Number(columns.value)},
    clicks, after: clicks.length ? now.base : null,
  };
}

async function segment() {
  if (!now.image) return tell("Choose an image first.");
  Object.assign(now, {run: null, base: null, clicks: []});
  showMask(null);
  draw();
  await run();
}

// Clicks that come while a run goes on are taken into the next one.
async function run() {
  if (now.busy) {
    now.again = true;
    return;
  }
  now.busy = true;
  $("run").disabled = true;
  await guarded(async () => {
    do {
      now.again = false;
      let told = await post("play/runs", asked(now.clicks));
      while (true) {
        show(told);
        if (told.state === "done" || told.state === "failed") break;
        await new Promise((resolve) => { setTimeout(resolve, LOOK_MS); });
        told = await ask(`play/runs/${told.id}`);
      }
      if (!told.command.includes(" --click")) now.base = told.id;
      if (told.state === "failed") throw new Error(told.error);
    } while (now.again);
  });
  now.busy = false;
  $("run").disabled = false;
}

async function guarded(act) {
  tell("");
  try {
    await act();
  } catch (error) {
    say("");
    tell(error.message);
  }
}

// --- what is shown ------------------------------------------------------------------------------------------------

function show(told) {
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

function showMask(address) {
  $("mask").hidden = address === null;
  if (address !== null) $("mask").src = address;
}

function draw() {
  const shapes = (now.run?.crops || []).map(([left, top, right, bottom]) =>
    shape("rect", {class: "crop", x: left, y: top, width: right - left, height: bottom - top, "stroke-width": unit(2)}));
  for (const {x, y, positive} of now.clicks) {
    shapes.push(shape("circle", {class: positive ? "in" : "out", cx: x, cy: y, r: unit(6), "stroke-width": unit(2)}));
  }
  if (now.cross && now.keys && document.activeElement === $("shown")) {
    const {x, y} = now.cross;
    const arm = unit(12);
    const path = `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`;
    shapes.push(shape("path", {class: "cross", d: path, "stroke-width": unit(2)}));
  }
  $("over").replaceChildren(...shapes);
  $("undo").disabled = now.clicks.length === 0;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// So many pixels of the screen, in pixels of the image.
function unit(pixels) {
  return pixels * now.image.size[0] / Math.max(1, $("shown").clientWidth);
}

function say(text) {
  $("status").textContent = text;
}

function pressed(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

function isPressed(button) {
  return button.getAttribute("aria-pressed") === "true";
}

// --- clicks -------------------------------------------------------------------------------------------------------

function clicked(x, y, positive) {
  const round = (value, size) => Math.min(Math.max(Math.round(value * 10) / 10, 0), size - 0.5);
  now.clicks.push({x: round(x, now.image.size[0]), y: round(y, now.image.size[1]), positive});
  draw();
  run();
}

function undo() {
  now.clicks.pop();
  draw();
  if (now.clicks.length || form.elements.instruction.value.trim()) run();
  else showMask(null);
}

function choose(positive) {
  now.positive = positive;
  pressed($("plus"), positive);
  pressed($("minus"), !positive);
}

function moved(event) {
  const [width, height] = now.image.size;
  const step = Math.max(width, height) * STEP_SHARE * (event.shiftKey ? 5 : 1);
  const [across, down] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  const {x, y} = now.cross || {x: width / 2, y: height / 2};
  now.cross = {
    x: Math.min(Math.max(x + across * step, 0), width - 0.5), y: Math.min(Math.max(y + down * step, 0), height - 0.5),
  };
  now.keys = true;
  draw();
}

$("shown").addEventListener("click", (event) => {
  now.keys = false;
  const box = $("shown").getBoundingClientRect();
  const [width, height] = now.image.size;
  const x = (event.clientX - box.left) / box.width * width;
  const y = (event.clientY - box.top) / box.height * height;
  clicked(x, y, event.altKey ? !now.positive : now.positive);
});
$("shown").addEventListener("keydown", (event) => {
  if (event.key.startsWith("Arrow")) {
    moved(event);
  } else if (event.key === "Enter" && now.cross) {
    clicked(now.cross.x, now.cross.y, event.altKey ? !now.positive : now.positive);
  } else if (event.key === "Backspace" && now.clicks.length) {
    undo();
  } else {
    return;
  }
  event.preventDefault();
});
$("shown").addEventListener("focus", () => {
  now.cross ||= {x: now.image.size[0] / 2, y: now.image.size[1] / 2};
  now.keys = $("shown").matches(":focus-visible");
  draw();
});
$("shown").addEventListener("blur", () => draw());

// --- everything else ----------------------------------------------------------------------------------------------

$("file").addEventListener("change", () => { if ($("file").files.length) bring($("file").files[0]); });
$("sample").addEventListener("click", sample);
$("other").addEventListener("click", another);
$("plus").addEventListener("click", () => choose(true));
$("minus").addEventListener("click", () => choose(false));
$("undo").addEventListener("click", undo);
$("marks").addEventListener("click", () => {
  const on = !isPressed($("marks"));
  pressed($("marks"), on);
  $("photo").src = on ? `play/runs/${$("marks").dataset.run}/marked` : `play/images/${now.image.id}`;
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("command").textContent);
    say("copied");
  } catch {
    getSelection().selectAllChildren($("command"));
    say("selected: copy it with Ctrl+C");
  }
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  segment();
});
form.elements.instruction.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) bring(event.dataTransfer.files[0]);
  });
}
