"use strict";
const all = (what, root = document) => [...root.querySelectorAll(what)];
const form = document.getElementById("filter"), search = form.querySelector("input[type=search]");
const cells = all(".matrix a"), cases = all(".case"), sorted = all(".cases, .matrix tbody");
const recorded = new Map(sorted.map(box => [box, [...box.children]]));
const nameOf = one => one.dataset.name || one.querySelector("summary").textContent;
const skipped = all("#skipped li");
const number = value => value.toLocaleString("en");
const total = all("#filter fieldset label").reduce((sum, one) => sum + Number(one.textContent.replace(/\D/g, "")), 0);
const textOf = new Map([...cells.map(one => [one, one.getAttribute("aria-label")]), ...cases.map(one => [one, nameOf(one)])]
  .map(([one, text]) => [one, text.toLowerCase()]));
const turn = (one, on) => one.toggleAttribute("data-off", !on);
const isOn = one => !one.hasAttribute("data-off");

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcomes = new Set(all("input[type=checkbox]", form).filter(box => box.checked).map(box => box.value));
  const wanted = (one, outcome) => outcomes.has(outcome) && words.every(word => textOf.get(one).includes(word));
  for (const one of cells) turn(one, wanted(one, one.className.slice(2)));
  for (const one of cases) turn(one, wanted(one, one.dataset.outcome));
  for (const row of all(".matrix tbody tr")) turn(row, all("a", row).some(isOn));
  for (const line of skipped) {
    const name = line.querySelector("b").textContent;
    const fits = text => outcomes.has("skip") && words.every(word => text.toLowerCase().includes(word));
    for (const one of all("i", line)) turn(one, fits(`${name} ${one.textContent} skip`));
    line.dataset.found = all("i", line).filter(isOn).length + (fits(`${name} skip`) ? Number(line.dataset.more) : 0);
    turn(line, Number(line.dataset.found));
  }
  let shown = 0;
  for (const group of all(".group")) {
    const found = all(".case", group).filter(isOn).length + all("li", group).reduce((sum, one) => sum + Number(one.dataset.found), 0);
    group.querySelector(".count").textContent = number(found);
    turn(group, found);
    shown += found;
  }
  for (const section of all("section")) if (section.querySelector(".group")) turn(section, all(".group", section).some(isOn));
  for (const table of all(".matrix")) turn(table.closest("details"), all("tbody tr", table).some(isOn));
  form.querySelector("output").textContent = shown === total ? "" : shown ? `${number(shown)} of ${number(total)} shown` : "no case matches";
}

function sort() {
  const key = form.querySelector("select").value;
  for (const [box, children] of recorded) {
    const order = [...children];
    if (key === "name") order.sort((a, b) => nameOf(a).localeCompare(nameOf(b), "en", {numeric: true}));
    else if (key) order.sort((a, b) => b.dataset[key] - a.dataset[key]);
    box.append(...order);
  }
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.closest("[data-off]")) { form.reset(); filter(); sort(); }
  for (let one = target; one; one = one.parentElement) if (one.localName === "details") one.open = true;
  target.scrollIntoView();
  target.querySelector("summary")?.focus({preventScroll: true});
}

function moveFocus(event) {
  const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  const cell = event.target.closest(".matrix td");
  if (!step || !cell) return;
  event.preventDefault();
  let row = cell.parentElement, column = cell.cellIndex, next = null;
  do {
    if (step[0]) row = step[0] > 0 ? row.nextElementSibling : row.previousElementSibling;
    column += step[1];
    next = row?.cells[column]?.querySelector("a");
  } while (row?.cells[column] && (!next || !isOn(row)));
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function addCopyButtons(event) {
  for (const command of all(":scope > pre:not([data-copy])", event.target)) {
    const button = document.createElement("button");
    command.dataset.copy = "";
    button.className = "copy";
    button.textContent = "Copy";
    button.onclick = () => navigator.clipboard.writeText(command.textContent).then(() => { button.textContent = "Copied"; });
    command.after(button);
  }
}

function letScrollByKeyboard(root) {
  for (const box of all(".box, pre, dd, ul, h1, h3, p, .case", root)) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

cells.forEach(cell => { cell.tabIndex = cell === cell.closest("table").querySelector("a") ? 0 : -1; cell.title = cell.getAttribute("aria-label"); });
form.hidden = false;
form.addEventListener("input", () => { filter(); sort(); });
form.addEventListener("submit", event => event.preventDefault());
for (const table of all(".matrix")) table.addEventListener("keydown", moveFocus);
if (navigator.clipboard) for (const one of cases) { one.addEventListener("toggle", addCopyButtons); if (one.open) addCopyButtons({target: one}); }
addEventListener("toggle", event => letScrollByKeyboard(event.target), true);
letScrollByKeyboard(document);
addEventListener("hashchange", openTarget);
openTarget();
