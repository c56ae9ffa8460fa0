// The playground: an image and an instruction go to the server, and what each stage makes of them is shown as it comes.
import {ask, post, tell} from "./pages.js";
import "./play_clicks.js";
import {$, draw, isPressed, now, pressed, say, show, showMask} from "./play_shown.js";

const LOOK_MS = 250;
const form = $("ask");

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

// --- everything else ----------------------------------------------------------------------------------------------

$("shown").addEventListener("refined", () => {
  if (now.clicks.length || form.elements.instruction.value.trim()) run();
  else showMask(null);
});
$("file").addEventListener("change", () => { if ($("file").files.length) bring($("file").files[0]); });
$("sample").addEventListener("click", sample);
$("other").addEventListener("click", another);
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
