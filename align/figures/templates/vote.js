"use strict";
// Everything that comes from files (prompts) is put in as text, never as markup.
const HELP = {
  best: "Click the best one, or press its number.",
  rank: "Click or press the numbers from best to worst; Backspace takes the last one back.",
  thumbs: "Click or press a number: up, down, none. Enter for the next ones.",
};
const MARKS = { 1: "up", 0: "down" };
let state = null;
let order = [];   // rank: places, the best first
let thumbs = [];  // by place
let busy = false;

const one = (id) => document.getElementById(id);

async function ask(name, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const answer = await fetch(name, options);
  if (!answer.ok && answer.status !== 409) throw new Error(answer.statusText);
  return answer.json();
}

async function act(name, body) {
  if (busy) return;
  busy = true;
  try {
    show(await ask(name, body));
    one("trouble").textContent = "";
  } catch (error) {
    one("trouble").textContent = `Not saved: ${error.message}. Is align vote still running?`;
  } finally {
    busy = false;
  }
}

function show(next) {
  const other = state === null || next.ballot !== state.ballot;
  state = next;
  one("progress").textContent = `${state.done} of ${state.total}`;
  one("undo").disabled = !state.undo;
  one("skip").disabled = one("submit").disabled = state.ballot === null;
  one("submit").hidden = state.how === "best";
  if (state.ballot === null) {
    one("prompt").textContent = "All done. Finish writes the data.";
    one("help").textContent = "";
    one("pictures").replaceChildren();
    return;
  }
  one("prompt").textContent = state.prompt;
  one("help").textContent = HELP[state.how];
  if (!other) return;
  order = [];
  thumbs = Array(state.count).fill(null);
  const cells = Array.from({ length: state.count }, (_, place) => {
    const cell = document.createElement("button");
    cell.type = "button";
    cell.className = "picture";
    cell.addEventListener("click", () => choose(place));
    const image = document.createElement("img");
    image.alt = `picture ${place + 1}`;
    image.addEventListener("load", () => cell.classList.toggle("small", image.naturalWidth < 200));
    image.src = `picture/${state.ballot}/${place}`;
    const mark = document.createElement("span");
    mark.className = "mark";
    cell.append(image, mark);
    return cell;
  });
  one("pictures").replaceChildren(...cells);
  marks();
}

function marks() {
  [...one("pictures").children].forEach((cell, place) => {
    const rank = order.indexOf(place);
    const thumb = thumbs[place];
    cell.classList.toggle("ranked", rank >= 0);
    cell.classList.toggle("good", thumb === 1);
    cell.classList.toggle("bad", thumb === 0);
    const said = rank >= 0 ? `, rank ${rank + 1}` : thumb === null ? "" : `, ${MARKS[thumb]}`;
    cell.lastChild.textContent = `${place + 1}${said}`;
  });
}

function choose(place) {
  if (busy || state === null || state.ballot === null || place >= state.count) return;
  if (state.how === "best") return void vote(place);
  if (state.how === "rank") {
    if (!order.includes(place)) order.push(place);
    if (order.length === state.count - 1) {
      order.push([...Array(state.count).keys()].find((other) => !order.includes(other)));
    }
  } else {
    thumbs[place] = thumbs[place] === null ? 1 : thumbs[place] === 1 ? 0 : null;
  }
  marks();
}

const vote = (choice) => act("vote", { ballot: state.ballot, choice });

function submit() {
  if (state === null || state.ballot === null) return;
  if (state.how === "thumbs") vote(thumbs);
  if (state.how === "rank" && order.length === state.count) vote(order);
}

const skip = () => state !== null && state.ballot !== null && vote(null);
const undo = () => act("undo", {});

async function finish() {
  try {
    await ask("finish", {});
    document.body.replaceChildren(document.createTextNode("Finished. This page can be closed."));
  } catch (error) {
    one("trouble").textContent = error.message;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (/^[1-8]$/.test(event.key)) choose(Number(event.key) - 1);
  else if (event.key === "Enter" && state?.how !== "best" && !event.target.closest?.("footer")) {
    event.preventDefault();
    submit();
  } else if (event.key === "Backspace") {
    if (order.length === state?.count) order.pop();
    order.pop();
    marks();
  } else if (event.key === "u") undo();
  else if (event.key === "s") skip();
});
one("submit").addEventListener("click", submit);
one("skip").addEventListener("click", skip);
one("undo").addEventListener("click", undo);
one("finish").addEventListener("click", finish);
act("state");
