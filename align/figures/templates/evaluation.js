const grid = document.getElementById("grid"), control = (name) => document.getElementById(name);
const cells = grid ? [...grid.querySelectorAll(".cell")] : [];
for (const cell of cells) cell.scores = JSON.parse(cell.dataset.scores);

function show() {
  const score = control("score").value, order = control("order").value;
  const category = control("category") ? control("category").value : "";
  const words = control("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const cell of cells) {
    const text = cell.querySelector("figcaption").textContent.toLowerCase();
    cell.hidden = (category && cell.dataset.category !== category) || !words.every((word) => text.includes(word));
    cell.querySelectorAll(":scope > div > div").forEach((box, arm) => {
      const value = cell.scores[arm][score], rose = value - cell.scores[0][score];
      box.className = arm === 0 || rose === 0 ? "plain" : rose > 0 ? "good" : "bad";
      box.querySelector("b").textContent = value.toFixed(3);
    });
  }
  const arm = Math.abs(Number(order)), sign = Math.sign(Number(order));
  const rank = (cell) => (arm ? sign * (cell.scores[arm][score] - cell.scores[0][score]) : 0);
  cells.sort((a, b) => rank(a) - rank(b) || a.dataset.place - b.dataset.place);
  grid.append(...cells);
}

for (const name of ["score", "order", "category", "words"]) control(name)?.addEventListener("input", show);
control("size")?.addEventListener("input", (event) => grid.style.setProperty("--cell", event.target.value + "px"));
grid?.addEventListener("click", (event) => {
  if (event.target.tagName !== "IMG") return;
  const large = document.createElement("div");
  large.id = "large";
  large.append(event.target.cloneNode(), event.target.closest(".cell").querySelector("figcaption").textContent);
  large.addEventListener("click", () => large.remove());
  document.body.append(large);
});
document.addEventListener("keydown", (event) => event.key === "Escape" && control("large")?.remove());
