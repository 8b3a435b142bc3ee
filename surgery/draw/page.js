"use strict";
const byId = (id) => document.getElementById(id);
const highlight = byId("highlight"), picture = byId("picture"), graph = byId("graph");
const entries = [...document.querySelectorAll(".space")];
const width = picture.width.baseVal.value, height = picture.height.baseVal.value;
let pinned = null, next = 0, scale = 1;

function show(k) {
  highlight.textContent = k === null ? "" : `
    .box:not(.b${k}), .links { opacity: .3 } .chip:not([data-k="${k}"]) { opacity: .25 }
    .chip[data-k="${k}"] > rect:first-child { stroke: var(--ink); stroke-width: 2 }`;
  for (const entry of entries) entry.classList.toggle("on", entry.dataset.k === k);
}

function pin(k) {
  pinned = k;
  next = 0;
  show(k);
}

function zoom(to) {
  scale = Math.min(3, Math.max(.05, to));
  picture.setAttribute("width", width * scale);
  picture.setAttribute("height", height * scale);
}

const spaceAt = (target) => target.closest("[data-k]")?.dataset.k ?? null;

document.addEventListener("pointerover", (event) => { if (pinned === null) show(spaceAt(event.target)); });
document.addEventListener("focusin", (event) => { if (pinned === null) show(spaceAt(event.target)); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });
graph.addEventListener("click", (event) => {
  const k = spaceAt(event.target);
  pin(k === pinned ? null : k);
  if (k !== null) entries.find((entry) => entry.dataset.k === k).scrollIntoView({ block: "nearest" });
});
for (const entry of entries) {
  entry.addEventListener("click", () => {
    if (pinned !== entry.dataset.k) pin(entry.dataset.k);
    const places = picture.querySelectorAll(`.chip[data-k="${pinned}"]`);
    if (places.length) places[next++ % places.length].scrollIntoView({ block: "center", inline: "center" });
  });
}
byId("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const entry of entries) entry.hidden = !entry.textContent.toLowerCase().includes(wanted);
});
byId("smaller").addEventListener("click", () => zoom(scale / 1.25));
byId("larger").addEventListener("click", () => zoom(scale * 1.25));
byId("fit").addEventListener("click", () => zoom(graph.clientWidth / width));
document.querySelector(".box.input")?.scrollIntoView({ block: "nearest", inline: "center" });
