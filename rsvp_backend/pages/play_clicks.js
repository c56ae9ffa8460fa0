// Clicks that refine a mask, by mouse and by keyboard; the image tells of each by the event `refined`.
import {$, draw, now, pressed} from "./play_shown.js";

const STEP_SHARE = 0.01;

function changed() {
  draw();
  $("shown").dispatchEvent(new Event("refined"));
}

function clicked(x, y, positive) {
  const round = (value, size) => Math.min(Math.max(Math.round(value * 10) / 10, 0), size - 0.5);
  now.clicks.push({x: round(x, now.image.size[0]), y: round(y, now.image.size[1]), positive});
  changed();
}

function undo() {
  now.clicks.pop();
  changed();
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
$("plus").addEventListener("click", () => choose(true));
$("minus").addEventListener("click", () => choose(false));
$("undo").addEventListener("click", undo);
