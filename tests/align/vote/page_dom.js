// The page's script on a stand-in for a browser: node page_dom.js ADDRESS STEP... presses keys or clicks (#id, @place)
// one after another and prints what the page then shows, a line of JSON each.
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [address, ...steps] = process.argv.slice(2);

class Element {
  constructor(id = "") {
    Object.assign(this, { id, textContent: "", className: "", hidden: false, disabled: false, children: [], on: {} });
    this.classes = new Set();
    this.classList = { toggle: (name, set) => (set ? this.classes.add(name) : this.classes.delete(name)) };
  }
  addEventListener(name, call) { (this.on[name] ??= []).push(call); }
  append(...parts) { this.children.push(...parts); }
  replaceChildren(...parts) { this.children = parts; }
  closest() { return null; }
  get lastChild() { return this.children.at(-1); }
  fire(name, event = {}) { for (const call of this.on[name] ?? []) call({ target: this, preventDefault() {}, ...event }); }
}

const known = {};
const document = new Element("document");
document.body = new Element("body");
document.getElementById = (id) => (known[id] ??= new Element(id));
document.createElement = () => new Element();
document.createTextNode = (text) => ({ textContent: text });

let waiting = 0;
const origin = new URL(address).origin;
async function fetchHere(name, options = {}) {
  waiting += 1;
  try {
    const answer = await fetch(new URL(name, address), { ...options, headers: { ...options.headers, Origin: origin } });
    const text = await answer.text(); // read here: what the script does with it takes no time after that
    return { ok: answer.ok, status: answer.status, statusText: answer.statusText, json: async () => JSON.parse(text) };
  } finally {
    setTimeout(() => { waiting -= 1; }, 20);
  }
}

async function settled() {
  do await new Promise((done) => setTimeout(done, 30)); while (waiting > 0);
}

function shown() {
  const said = (id) => known[id]?.textContent ?? "";
  const marks = known.pictures.children.map((cell) => cell.lastChild.textContent);
  const sources = known.pictures.children.map((cell) => cell.children[0].src);
  return { prompt: said("prompt"), progress: said("progress"), trouble: said("trouble"), marks, sources, undo: !known.undo.disabled };
}

async function main() {
  const script = fs.readFileSync(path.join(__dirname, "../../../align/figures/templates/vote.js"), "utf8");
  vm.runInNewContext(script, { document, fetch: fetchHere, HTMLButtonElement: Element, console });
  await settled();
  console.log(JSON.stringify(shown()));
  for (const step of steps) {
    if (step.startsWith("#")) known[step.slice(1)].fire("click");
    else if (step.startsWith("@")) known.pictures.children[Number(step.slice(1))].fire("click");
    else document.fire("keydown", { key: step });
    await settled();
    console.log(JSON.stringify(shown()));
  }
  process.exit(0);
}
main();
