// The page of a rater. What it shows is the server's answer to the last question; it keeps nothing.
"use strict";

const AGAIN = 2000; // ms until what could not be sent is sent again
const PAUSE = 100; // ms; a longer gap between two pictures is time that nobody watched

const element = (id) => document.getElementById(id);
const buttons = { left: element("left"), right: element("right") };
const keys = { ArrowLeft: "left", ArrowRight: "right", 1: "left", 2: "right" };

let key = null; // of the trial that is shown
let ready = false; // whether an answer is taken

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  for (;;) {
    let problem = "The study cannot be reached.";
    try {
      const answer = await fetch(path, options);
      if (answer.ok) {
        element("problem").textContent = "";
        return answer;
      }
      if (answer.status < 500) {
        const { error } = await answer.json();
        element("problem").textContent = `This did not work: ${error}. Please reload the page.`;
        throw new Error(error);
      }
      problem = "The study cannot save anything at the moment.";
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // TypeError: the network failed
    }
    element("problem").textContent = `${problem} Trying again…`;
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

async function show(answer) {
  const state = await answer.json();
  for (const name of ["new", "trial", "done"]) element(name).hidden = name !== state.state;
  for (const place of document.getElementsByClassName("of")) place.textContent = state.of;
  if (state.state !== "trial") return;
  element("progress").max = state.of;
  element("progress").value = state.number - 1;
  element("count").textContent = `${state.number} of ${state.of}`;
  await play(state.key, state.clip);
}

async function play(next, clip) {
  const image = await createImageBitmap(await (await ask(`sheet/${next}`)).blob());
  const screens = Object.values(buttons).map((button) => {
    const canvas = button.querySelector("canvas");
    canvas.width = canvas.height = clip.size;
    return canvas.getContext("2d");
  });
  for (const button of Object.values(buttons)) button.classList.remove("chosen");
  key = next;
  hint("Watch both videos once.");
  let watched = 0; // ms
  let seen = false;
  let last = null;
  function draw(now) {
    if (key !== next) return;
    // A tab in the background is shown no pictures: that time does not count.
    if (last !== null) watched += Math.min(now - last, PAUSE);
    last = now;
    const frame = Math.floor((watched * clip.fps) / 1000);
    const moment = frame % clip.frames;
    const left = 2 * clip.size * (moment % clip.columns);
    const top = clip.size * Math.floor(moment / clip.columns);
    screens.forEach((screen, side) => screen.drawImage(
      image, left + side * clip.size, top, clip.size, clip.size, 0, 0, clip.size, clip.size,
    ));
    if (!seen && frame >= clip.frames) {
      seen = true; // once: while an answer is sent the clips play on
      enable(true);
      hint("Choose the more realistic one.");
    }
    requestAnimationFrame(draw);
  }
  requestAnimationFrame(draw);
}

function hint(text) {
  element("hint").textContent = text;
}

function enable(yes) {
  ready = yes;
  for (const button of Object.values(buttons)) button.setAttribute("aria-disabled", String(!yes));
}

async function choose(side) {
  if (!ready) return;
  enable(false);
  buttons[side].classList.add("chosen");
  const answered = key;
  const answer = await ask("vote", { key: answered, side });
  key = null; // the old clips stop
  await show(answer);
}

element("begin").addEventListener("click", async () => {
  element("begin").disabled = true;
  await show(await ask("begin", {}));
});
for (const [side, button] of Object.entries(buttons)) {
  button.addEventListener("click", () => choose(side));
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (element("trial").hidden || !(event.key in keys)) return;
  event.preventDefault();
  choose(keys[event.key]);
});

enable(false);
ask("trial").then(show);
